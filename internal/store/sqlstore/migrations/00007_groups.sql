-- A group is static, its members listed, or dynamic: then its members are those
-- devices that its selector means, and who changes a device changes them with it.

-- +goose Up
CREATE TABLE device_groups (
    name       {{.Text}} NOT NULL PRIMARY KEY,
    dynamic    {{.Int}}  NOT NULL,
    selector   {{.Text}} NOT NULL,
    created_at {{.Int}}  NOT NULL
) {{.WithoutRowID}};

CREATE TABLE group_members (
    group_name {{.Text}} NOT NULL REFERENCES device_groups (name) ON DELETE CASCADE,
    device_id  {{.Text}} NOT NULL REFERENCES devices (id),
    PRIMARY KEY (group_name, device_id)
) {{.WithoutRowID}};

CREATE INDEX group_members_device ON group_members (device_id, group_name);

-- Raised by whoever makes or deletes a dynamic group, so that every otad notices.
CREATE TABLE group_generation (
    one        {{.Int}} NOT NULL PRIMARY KEY,
    generation {{.Int}} NOT NULL
);

INSERT INTO group_generation (one, generation) VALUES (1, 1);
