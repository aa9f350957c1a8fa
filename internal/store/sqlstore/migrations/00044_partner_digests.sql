-- The image that the partner of a pair ran when it was given: a pair whose partner runs
-- another one since says nothing. Of pairs that are watched when this is made, it is what
-- the partner runs now.

-- +goose Up
ALTER TABLE health_pairs ADD COLUMN partner_digest {{.Text}} NOT NULL DEFAULT '';
UPDATE health_pairs SET partner_digest = COALESCE((SELECT d.firmware_digest FROM devices d WHERE d.id = partner_id), '') WHERE outcomes = '';
