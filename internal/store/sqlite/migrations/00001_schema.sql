-- Times are microseconds since 1970 in UTC, NULL for none. Maps, manifests and
-- shadows are JSON text. Text is compared byte by byte.

-- +goose Up
CREATE TABLE devices (
    id              TEXT    NOT NULL PRIMARY KEY,
    hardware        TEXT    NOT NULL,
    tags            TEXT    NOT NULL,
    key_fingerprint TEXT    NOT NULL,
    created_at      INTEGER NOT NULL,
    revoked_at      INTEGER
) WITHOUT ROWID;

-- Written for every device each minute: kept off the devices themselves.
CREATE TABLE device_seen (
    device_id TEXT    NOT NULL PRIMARY KEY REFERENCES devices (id),
    seen_at   INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE enrollment_tokens (
    id          TEXT    NOT NULL PRIMARY KEY,
    secret_hash TEXT    NOT NULL UNIQUE,
    uses        INTEGER NOT NULL,
    device_glob TEXT    NOT NULL,
    hardware    TEXT    NOT NULL,
    tags        TEXT    NOT NULL,
    created_at  INTEGER,
    expires_at  INTEGER,
    revoked_at  INTEGER
);

CREATE TABLE api_tokens (
    id          TEXT NOT NULL PRIMARY KEY,
    name        TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    created_at  INTEGER,
    expires_at  INTEGER
);

-- A deleted shadow stays, for its version; document is empty then.
CREATE TABLE shadows (
    device_id  TEXT    NOT NULL REFERENCES devices (id),
    name       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    deleted_at INTEGER,
    document   TEXT    NOT NULL,
    PRIMARY KEY (device_id, name)
);

CREATE TABLE releases (
    name         TEXT    NOT NULL,
    version      TEXT    NOT NULL,
    manifest     TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    index_digest TEXT    NOT NULL,
    index_size   INTEGER NOT NULL,
    created_at   INTEGER,
    signed_at    INTEGER,
    PRIMARY KEY (name, version)
);

CREATE TABLE metadata (
    role    TEXT    NOT NULL,
    version INTEGER NOT NULL,
    bytes   BLOB    NOT NULL,
    PRIMARY KEY (role, version)
);

CREATE TABLE rollouts (
    id              TEXT    NOT NULL PRIMARY KEY,
    release_name    TEXT    NOT NULL,
    release_version TEXT    NOT NULL,
    selector        TEXT    NOT NULL,
    seed            TEXT    NOT NULL,
    stages          TEXT    NOT NULL,
    abort           TEXT    NOT NULL,
    priority        INTEGER NOT NULL,
    state           TEXT    NOT NULL,
    reason          TEXT    NOT NULL,
    population      INTEGER NOT NULL,
    armed_at        INTEGER,
    revision        INTEGER NOT NULL,
    created_at      INTEGER,
    ended_at        INTEGER,
    FOREIGN KEY (release_name, release_version) REFERENCES releases (name, version)
);

-- latest is 1 on the newest attempt of each (rollout, device), else 0. The
-- release is the rollout's.
CREATE TABLE executions (
    rollout_id  TEXT    NOT NULL REFERENCES rollouts (id),
    device_id   TEXT    NOT NULL REFERENCES devices (id),
    attempt     INTEGER NOT NULL,
    latest      INTEGER NOT NULL,
    stage       INTEGER NOT NULL,
    status      TEXT    NOT NULL,
    class       TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    queued_at   INTEGER NOT NULL,
    started_at  INTEGER,
    updated_at  INTEGER NOT NULL,
    finished_at INTEGER,
    details     TEXT    NOT NULL,
    PRIMARY KEY (rollout_id, device_id, attempt)
) WITHOUT ROWID;

-- Progress, and the active executions of a rollout.
CREATE INDEX executions_progress ON executions (rollout_id, status, stage, class, finished_at) WHERE latest = 1;

-- What a device shall work on.
CREATE INDEX executions_active ON executions (device_id, status) WHERE status IN ('QUEUED', 'IN_PROGRESS');

-- Design rule 8: at most one execution in progress on a device.
CREATE UNIQUE INDEX executions_one_in_progress ON executions (device_id) WHERE status = 'IN_PROGRESS';

-- The history of a device.
CREATE INDEX executions_device ON executions (device_id, rollout_id, attempt);
