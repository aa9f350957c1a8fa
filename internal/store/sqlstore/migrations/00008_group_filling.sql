-- How far a dynamic group that was made has been filled: up to the device with
-- this id. NULL: all of it.

-- +goose Up
ALTER TABLE device_groups ADD COLUMN filled_to {{.Text}};
