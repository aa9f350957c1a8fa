-- The certificates that devices were given, so that those of a revoked device can
-- be named to a broker that is not ours.

-- +goose Up
CREATE TABLE device_certificates (
    serial    {{.Text}}  NOT NULL PRIMARY KEY,
    device_id {{.Text}}  NOT NULL REFERENCES devices (id),
    ends_at   {{.Int}}   NOT NULL
) {{.WithoutRowID}};

CREATE INDEX device_certificates_device ON device_certificates (device_id, ends_at);

CREATE INDEX devices_revoked ON devices (revoked_at, id) WHERE revoked_at IS NOT NULL;
