-- Releases that were withdrawn, when and why, and which release an event is about:
-- NAME@VERSION, empty for all others.

-- +goose Up
ALTER TABLE releases ADD COLUMN withdrawn_at {{.Int}};
ALTER TABLE releases ADD COLUMN reason {{.Text}} NOT NULL DEFAULT '';
CREATE INDEX releases_withdrawn ON releases (name, version) WHERE withdrawn_at IS NOT NULL;
ALTER TABLE rollout_events ADD COLUMN release {{.Text}} NOT NULL DEFAULT '';
