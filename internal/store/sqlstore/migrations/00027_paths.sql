-- Which releases a device passes through on its way to that of a rollout, with this
-- execution and those that follow it, and on which leg of that way it is. What came
-- such a leg did not fail.

-- +goose Up
ALTER TABLE executions ADD COLUMN via {{.Text}} NOT NULL DEFAULT '';
ALTER TABLE executions ADD COLUMN leg {{.Int}} NOT NULL DEFAULT 1;
CREATE INDEX executions_via ON executions (rollout_id, via) WHERE via <> '';
DROP INDEX executions_unsuccessful;
CREATE INDEX executions_unsuccessful ON executions (rollout_id, finished_at) WHERE class NOT IN ('', 'succeeded', 'underway');
