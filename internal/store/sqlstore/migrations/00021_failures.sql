-- What ended unsuccessfully last, without reading what went well.

-- +goose Up
CREATE INDEX executions_unsuccessful ON executions (rollout_id, finished_at) WHERE class NOT IN ('', 'succeeded');
