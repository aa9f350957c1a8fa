-- PostgreSQL asks for each row that refers to another one, by itself, which took
-- half of the time of a stage that opens. What makes executions sees to it that
-- their device and rollout are there, nothing deletes either, and otad check looks.

-- +goose Up
{{if .Postgres}}
ALTER TABLE executions DROP CONSTRAINT executions_rollout_id_fkey, DROP CONSTRAINT executions_device_id_fkey;
{{else}}
SELECT 1;
{{end}}
