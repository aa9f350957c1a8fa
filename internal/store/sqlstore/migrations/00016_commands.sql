-- A rollout brings a release or a command: command is JSON then, and the release
-- is NULL, which no foreign key looks at. SQLite has no statement that takes a NOT
-- NULL off; its documentation of ALTER TABLE says to edit the text of the schema
-- for that, since no row is stored another way.
--
-- An upload is what a device brought for a command; bytes is NULL until all of it
-- is there.

-- +goose Up
{{if .Postgres}}
ALTER TABLE rollouts ALTER COLUMN release_name DROP NOT NULL;
ALTER TABLE rollouts ALTER COLUMN release_version DROP NOT NULL;
{{else}}
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(replace(sql, 'release_name    TEXT  NOT NULL', 'release_name    TEXT'), 'release_version TEXT  NOT NULL', 'release_version TEXT')
    WHERE type = 'table' AND name = 'rollouts';
PRAGMA writable_schema = RESET;
{{end}}
ALTER TABLE rollouts ADD COLUMN command {{.Text}} NOT NULL DEFAULT '';

CREATE TABLE uploads (
    rollout_id  {{.Text}}  NOT NULL REFERENCES rollouts (id),
    device_id   {{.Text}}  NOT NULL REFERENCES devices (id),
    attempt     {{.Int}}   NOT NULL,
    bytes       {{.Int}},
    uploaded_at {{.Int}}   NOT NULL,
    PRIMARY KEY (rollout_id, device_id, attempt)
) {{.WithoutRowID}};

CREATE INDEX uploads_device ON uploads (device_id, uploaded_at);

CREATE INDEX uploads_age ON uploads (uploaded_at);
