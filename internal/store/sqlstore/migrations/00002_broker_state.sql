-- What the embedded broker keeps over a restart: its sessions, retained
-- messages and queues, under keys and in a form of its own.

-- +goose Up
CREATE TABLE broker_state (
    key   {{.Text}}  NOT NULL PRIMARY KEY,
    value {{.Bytes}} NOT NULL
) {{.WithoutRowID}};
