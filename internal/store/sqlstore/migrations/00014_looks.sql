-- Devices that are to be looked at again, since what they say may no longer agree
-- with what rollouts have made of them; and what drifted executions' devices run.

-- +goose Up
CREATE TABLE marks (
    device_id   {{.Text}} NOT NULL PRIMARY KEY,
    mark        {{.Int}}  NOT NULL,
    reported_at {{.Int}}
) {{.WithoutRowID}};

ALTER TABLE executions ADD COLUMN drifted_at {{.Int}};
ALTER TABLE executions ADD COLUMN runs {{.Text}} NOT NULL DEFAULT '';
