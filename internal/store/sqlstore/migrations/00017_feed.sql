-- The feed: what happened to rollouts, written by the transaction that did it. The
-- numbers are dense and in the order of commits, since whoever writes events holds
-- the mark 'end' until its commit. The mark 'dropped' is up to where they are gone. A
-- mark that is not there is 0.

-- +goose Up
CREATE TABLE rollout_events (
    seq        {{.Int}}   NOT NULL PRIMARY KEY,
    at         {{.Int}}   NOT NULL,
    rollout_id {{.Text}}  NOT NULL,
    kind       {{.Text}}  NOT NULL,
    stage      {{.Int}}   NOT NULL,
    device_id  {{.Text}}  NOT NULL,
    attempt    {{.Int}}   NOT NULL,
    was        {{.Text}}  NOT NULL,
    became     {{.Text}}  NOT NULL,
    class      {{.Text}}  NOT NULL,
    n          {{.Int}}   NOT NULL,
    reason     {{.Text}}  NOT NULL
);

CREATE INDEX rollout_events_rollout ON rollout_events (rollout_id, seq);

CREATE INDEX rollout_events_device ON rollout_events (device_id, seq) WHERE device_id <> '';

CREATE TABLE feed_marks (
    name {{.Text}} NOT NULL PRIMARY KEY,
    seq  {{.Int}}  NOT NULL
);
