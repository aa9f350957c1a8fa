-- What a device ran before an execution, and which rollout brings back the
-- devices of another.

-- +goose Up
ALTER TABLE executions ADD COLUMN from_digest {{.Text}} NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN reverting {{.Int}} NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN revert_of {{.Text}} NOT NULL DEFAULT '';
CREATE INDEX rollouts_reverts ON rollouts (revert_of) WHERE revert_of <> '';
