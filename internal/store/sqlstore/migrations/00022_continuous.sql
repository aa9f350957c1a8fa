-- Continuous rollouts: follows is 1 while changes of devices are held against the
-- selector, idle while there is nothing to do.

-- +goose Up
ALTER TABLE rollouts ADD COLUMN follows {{.Int}} NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN idle {{.Int}} NOT NULL DEFAULT 0;
CREATE INDEX rollouts_followed ON rollouts (id) WHERE follows = 1;
DROP INDEX rollouts_state;
CREATE INDEX rollouts_state ON rollouts (state, idle);

-- Where a device stands in a line that is followed: 1, or 0 when it has left. NULL in
-- all other lines, and where a device stood before it was given a later turn.
ALTER TABLE candidates ADD COLUMN standing {{.Int}};
CREATE UNIQUE INDEX candidates_standing ON candidates (rollout_id, line, device_id) WHERE standing IS NOT NULL;

-- Devices that changed while a rollout was being arranged: they are marked when it
-- begins.
CREATE TABLE relooks (
    rollout_id {{.Text}} NOT NULL REFERENCES rollouts (id),
    device_id  {{.Text}} NOT NULL REFERENCES devices (id),
    PRIMARY KEY (rollout_id, device_id)
) {{.WithoutRowID}};
