-- How many newest attempts of each rollout stand where, written with the rows that
-- they count (ADR 0016): armed are those that finished after the moment in
-- armed_counts, retrying those that will be tried again.

-- +goose Up
CREATE TABLE execution_counts (
    rollout_id {{.Text}} NOT NULL REFERENCES rollouts (id),
    stage      {{.Int}}  NOT NULL,
    status     {{.Text}} NOT NULL,
    class      {{.Text}} NOT NULL,
    n          {{.Int}}  NOT NULL,
    armed      {{.Int}}  NOT NULL,
    retrying   {{.Int}}  NOT NULL,
    PRIMARY KEY (rollout_id, stage, status, class)
) {{.WithoutRowID}};

-- Whoever writes the counts of a rollout holds this row of it until the commit.
CREATE TABLE armed_counts (
    rollout_id {{.Text}} NOT NULL PRIMARY KEY REFERENCES rollouts (id),
    armed_at   {{.Int}}
) {{.WithoutRowID}};

INSERT INTO armed_counts (rollout_id, armed_at) SELECT id, armed_at FROM rollouts;
INSERT INTO execution_counts (rollout_id, stage, status, class, n, armed, retrying)
SELECT e.rollout_id, e.stage, e.status, e.class, COUNT(*),
    SUM(CASE WHEN e.finished_at IS NOT NULL AND (r.armed_at IS NULL OR e.finished_at > r.armed_at) THEN 1 ELSE 0 END),
    SUM(CASE WHEN e.retry_at IS NOT NULL THEN 1 ELSE 0 END)
FROM executions e JOIN rollouts r ON r.id = e.rollout_id WHERE e.latest = 1
GROUP BY e.rollout_id, e.stage, e.status, e.class;

-- What is due for another attempt, the longest due first.
DROP INDEX executions_retry;
CREATE INDEX executions_retry ON executions (rollout_id, retry_at) WHERE retry_at IS NOT NULL;

-- Rollouts that move by themselves.
CREATE INDEX rollouts_state ON rollouts (state, created_at);
