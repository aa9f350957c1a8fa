-- When a device said of an execution that the server had ended that it had tried the image
-- and gone back; and what went back, without reading what failed otherwise.

-- +goose Up
ALTER TABLE executions ADD COLUMN went_back_at {{.Int}};
CREATE INDEX executions_went_back ON executions (rollout_id, attempt, device_id) WHERE class = 'rolled_back' OR went_back_at IS NOT NULL;
