-- Rollouts whose open stage has devices that have not had their turn, with nothing to
-- wait for (ota.Rollout.Opening), and where one that asks stands in line. A rollout that
-- is being opened when this is made is noted with its next step. taken is 1 when devices
-- took their turn before it was given to them, until the stage is open.

-- +goose Up
ALTER TABLE rollouts ADD COLUMN opening {{.Int}} NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN taken {{.Int}} NOT NULL DEFAULT 0;
CREATE INDEX rollouts_opening ON rollouts (id) WHERE opening = 1;
CREATE INDEX candidates_device ON candidates (rollout_id, line, device_id, turn);
