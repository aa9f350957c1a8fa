-- What devices prove their ids with beside certificates, whose sessions have to
-- end, and who is connected.

-- +goose Up
CREATE TABLE device_credentials (
    id         {{.Text}}  NOT NULL PRIMARY KEY,
    device_id  {{.Text}}  NOT NULL REFERENCES devices (id),
    kind       {{.Text}}  NOT NULL,
    secret     {{.Text}}  NOT NULL,
    key_id     {{.Text}}  NOT NULL,
    created_at {{.Int}}
);

CREATE INDEX device_credentials_device ON device_credentials (device_id, created_at, id);

-- A replica looks every few seconds for those that are new.
CREATE TABLE device_evictions (
    device_id  {{.Text}}  NOT NULL PRIMARY KEY REFERENCES devices (id),
    evicted_at {{.Int}}   NOT NULL,
    reason     {{.Text}}  NOT NULL
);

CREATE INDEX device_evictions_at ON device_evictions (evicted_at);

CREATE TABLE jwt_issuers (
    name        {{.Text}}  NOT NULL PRIMARY KEY,
    keys        {{.Text}}  NOT NULL,
    device_glob {{.Text}}  NOT NULL,
    created_at  {{.Int}}
);

-- Written when a device comes or goes: kept off the devices themselves.
CREATE TABLE device_connections (
    device_id {{.Text}}  NOT NULL PRIMARY KEY REFERENCES devices (id),
    connected {{.Int}}   NOT NULL,
    since_at  {{.Int}}   NOT NULL,
    began_at  {{.Int}}   NOT NULL,
    reason    {{.Text}}  NOT NULL,
    replica   {{.Text}}  NOT NULL
) {{.WithoutRowID}};

-- Each start of an otad is one.
CREATE TABLE replicas (
    name    {{.Text}}  NOT NULL PRIMARY KEY,
    beat_at {{.Int}}   NOT NULL
);
