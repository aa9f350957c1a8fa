-- A template: the words in braces are those of sqlstore.Words.
--
-- Times are microseconds since 1970 in UTC, NULL for none. Maps, manifests and
-- shadows are JSON text. Text is compared byte by byte.

-- +goose Up
CREATE TABLE devices (
    id              {{.Text}}  NOT NULL PRIMARY KEY,
    hardware        {{.Text}}  NOT NULL,
    tags            {{.Text}}  NOT NULL,
    key_fingerprint {{.Text}}  NOT NULL,
    created_at      {{.Int}}   NOT NULL,
    revoked_at      {{.Int}}
) {{.WithoutRowID}};

-- Written for every device each minute: kept off the devices themselves.
CREATE TABLE device_seen (
    device_id {{.Text}}  NOT NULL PRIMARY KEY REFERENCES devices (id),
    seen_at   {{.Int}}   NOT NULL
) {{.WithoutRowID}};

CREATE TABLE enrollment_tokens (
    id          {{.Text}}  NOT NULL PRIMARY KEY,
    secret_hash {{.Text}}  NOT NULL UNIQUE,
    uses        {{.Int}}   NOT NULL,
    device_glob {{.Text}}  NOT NULL,
    hardware    {{.Text}}  NOT NULL,
    tags        {{.Text}}  NOT NULL,
    created_at  {{.Int}},
    expires_at  {{.Int}},
    revoked_at  {{.Int}}
);

CREATE TABLE api_tokens (
    id          {{.Text}}  NOT NULL PRIMARY KEY,
    name        {{.Text}}  NOT NULL,
    secret_hash {{.Text}}  NOT NULL,
    created_at  {{.Int}},
    expires_at  {{.Int}}
);

-- A deleted shadow stays, for its version; document is empty then.
CREATE TABLE shadows (
    device_id  {{.Text}}  NOT NULL REFERENCES devices (id),
    name       {{.Text}}  NOT NULL,
    version    {{.Int}}   NOT NULL,
    deleted_at {{.Int}},
    document   {{.Text}}  NOT NULL,
    PRIMARY KEY (device_id, name)
);

CREATE TABLE releases (
    name         {{.Text}}  NOT NULL,
    version      {{.Text}}  NOT NULL,
    manifest     {{.Text}}  NOT NULL,
    state        {{.Text}}  NOT NULL,
    index_digest {{.Text}}  NOT NULL,
    index_size   {{.Int}}   NOT NULL,
    created_at   {{.Int}},
    signed_at    {{.Int}},
    PRIMARY KEY (name, version)
);

CREATE TABLE metadata (
    role    {{.Text}}  NOT NULL,
    version {{.Int}}   NOT NULL,
    bytes   {{.Bytes}} NOT NULL,
    PRIMARY KEY (role, version)
);

CREATE TABLE rollouts (
    id              {{.Text}}  NOT NULL PRIMARY KEY,
    release_name    {{.Text}}  NOT NULL,
    release_version {{.Text}}  NOT NULL,
    selector        {{.Text}}  NOT NULL,
    seed            {{.Text}}  NOT NULL,
    stages          {{.Text}}  NOT NULL,
    abort           {{.Text}}  NOT NULL,
    priority        {{.Int}}   NOT NULL,
    state           {{.Text}}  NOT NULL,
    reason          {{.Text}}  NOT NULL,
    population      {{.Int}}   NOT NULL,
    armed_at        {{.Int}},
    revision        {{.Int}}   NOT NULL,
    created_at      {{.Int}},
    ended_at        {{.Int}},
    FOREIGN KEY (release_name, release_version) REFERENCES releases (name, version)
);

-- latest is 1 on the newest attempt of each (rollout, device), else 0. The
-- release is the rollout's.
CREATE TABLE executions (
    rollout_id  {{.Text}}  NOT NULL REFERENCES rollouts (id),
    device_id   {{.Text}}  NOT NULL REFERENCES devices (id),
    attempt     {{.Int}}   NOT NULL,
    latest      {{.Int}}   NOT NULL,
    stage       {{.Int}}   NOT NULL,
    status      {{.Text}}  NOT NULL,
    class       {{.Text}}  NOT NULL,
    version     {{.Int}}   NOT NULL,
    queued_at   {{.Int}}   NOT NULL,
    started_at  {{.Int}},
    updated_at  {{.Int}}   NOT NULL,
    finished_at {{.Int}},
    details     {{.Text}}  NOT NULL,
    PRIMARY KEY (rollout_id, device_id, attempt)
) {{.WithoutRowID}};

-- Progress, and the active executions of a rollout.
CREATE INDEX executions_progress ON executions (rollout_id, status, stage, class, finished_at) WHERE latest = 1;

-- What a device shall work on.
CREATE INDEX executions_active ON executions (device_id, status) WHERE status IN ('QUEUED', 'IN_PROGRESS');

-- Design rule 8: at most one execution in progress on a device.
CREATE UNIQUE INDEX executions_one_in_progress ON executions (device_id) WHERE status = 'IN_PROGRESS';

-- The history of a device.
CREATE INDEX executions_device ON executions (device_id, rollout_id, attempt);
