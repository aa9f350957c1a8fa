-- What binds a rollout beside its stages, where it stands in the line of its
-- candidates, and the timers, lanes and retries of executions.

-- +goose Up
ALTER TABLE rollouts ADD COLUMN terms {{.Text}} NOT NULL DEFAULT '{}';
ALTER TABLE rollouts ADD COLUMN max_in_flight {{.Int}} NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN max_per_lane {{.Int}} NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN line {{.Text}} NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN next_turn {{.Int}} NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN paced_at {{.Int}};
ALTER TABLE rollouts ADD COLUMN approved_at {{.Int}};
ALTER TABLE rollouts ADD COLUMN started_at {{.Int}};

ALTER TABLE executions ADD COLUMN step {{.Text}} NOT NULL DEFAULT '';
ALTER TABLE executions ADD COLUMN step_at {{.Int}};
ALTER TABLE executions ADD COLUMN lane {{.Text}} NOT NULL DEFAULT '';
ALTER TABLE executions ADD COLUMN expires_as {{.Text}} NOT NULL DEFAULT '';
ALTER TABLE executions ADD COLUMN retry_at {{.Int}};

-- What is to be tried again.
CREATE INDEX executions_retry ON executions (rollout_id, stage, retry_at) WHERE retry_at IS NOT NULL;

-- How many are in flight in a lane.
CREATE INDEX executions_lanes ON executions (rollout_id, lane) WHERE status = 'IN_PROGRESS';

-- The devices of a rollout in the order in which they get their turn. A line is
-- one arrangement: of replicas that arrange at the same time, one wins.
CREATE TABLE candidates (
    rollout_id {{.Text}} NOT NULL,
    line       {{.Text}} NOT NULL,
    turn       {{.Int}}  NOT NULL,
    device_id  {{.Text}} NOT NULL,
    stage      {{.Int}}  NOT NULL,
    lane       {{.Text}} NOT NULL,
    PRIMARY KEY (rollout_id, line, turn)
) {{.WithoutRowID}};
