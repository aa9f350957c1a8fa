-- Devices can be deleted. Their certificates stay refused until they end, and what
-- was rolled out to them stays counted: executions and the uploads of them, and
-- evictions, which other otad have yet to see, no longer need their device.

-- +goose Up
CREATE TABLE deleted_certificates (
    serial          {{.Text}}  NOT NULL PRIMARY KEY,
    device_id       {{.Text}}  NOT NULL,
    key_fingerprint {{.Text}}  NOT NULL,
    ends_at         {{.Int}}   NOT NULL,
    revoked_at      {{.Int}}   NOT NULL
) {{.WithoutRowID}};

CREATE INDEX deleted_certificates_key ON deleted_certificates (key_fingerprint, ends_at);

CREATE INDEX deleted_certificates_end ON deleted_certificates (ends_at);

{{if .Postgres}}
ALTER TABLE device_evictions DROP CONSTRAINT device_evictions_device_id_fkey;
ALTER TABLE uploads DROP CONSTRAINT uploads_device_id_fkey;
{{else}}
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, ' REFERENCES devices (id)', '')
    WHERE type = 'table' AND name IN ('executions', 'uploads', 'device_evictions');
PRAGMA writable_schema = RESET;
{{end}}
