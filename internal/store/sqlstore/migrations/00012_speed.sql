-- What a device says it runs, beside the device: judging a fleet reads no
-- documents. Written with the shadow that says it, see fleet.ReportedDigest.

-- +goose Up
ALTER TABLE devices ADD COLUMN firmware_digest {{.Text}} NOT NULL DEFAULT '';
{{if .Postgres}}
UPDATE devices SET firmware_digest = s.document::jsonb #>> '{reported,firmware,digest}' FROM shadows s
WHERE s.device_id = devices.id AND s.name = '' AND s.deleted_at IS NULL AND s.opaque = 0
AND s.document::jsonb #>> '{reported,firmware,digest}' ~ '^[0-9a-f]{64}$';
{{else}}
UPDATE devices SET firmware_digest = json_extract(s.document, '$.reported.firmware.digest') FROM shadows s
WHERE s.device_id = devices.id AND s.name = '' AND s.deleted_at IS NULL
AND json_type(s.document, '$.reported.firmware.digest') = 'text' AND length(json_extract(s.document, '$.reported.firmware.digest')) = 64
AND json_extract(s.document, '$.reported.firmware.digest') NOT GLOB '*[^0-9a-f]*';
{{end}}
-- The stage that takes a turn is the one that is open then.
ALTER TABLE candidates DROP COLUMN stage;
