-- When executions time out: the rollout's bound in microseconds, 0 for none, and
-- the moment for each execution that is in progress, NULL for never.

-- +goose Up
ALTER TABLE rollouts ADD COLUMN in_progress_timeout {{.Int}} NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN expires_at {{.Int}};

-- What is due, and what is due next.
CREATE INDEX executions_expiry ON executions (expires_at) WHERE expires_at IS NOT NULL;
