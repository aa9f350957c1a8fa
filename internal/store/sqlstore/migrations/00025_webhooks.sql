-- Webhooks: where events are sent, how far each has come, and the messages that
-- were given up. owner has the claim to deliver until claimed_until; both are set
-- or none is.

-- +goose Up
CREATE TABLE webhooks (
    id            {{.Text}} NOT NULL PRIMARY KEY,
    url           {{.Text}} NOT NULL,
    types         {{.Text}} NOT NULL,
    rollout_id    {{.Text}} NOT NULL,
    salt          {{.Text}} NOT NULL,
    secret_sum    {{.Text}} NOT NULL,
    old_salt      {{.Text}} NOT NULL,
    old_sum       {{.Text}} NOT NULL,
    old_until     {{.Int}},
    state         {{.Text}} NOT NULL,
    created_by    {{.Text}} NOT NULL,
    created_at    {{.Int}},
    revision      {{.Int}}  NOT NULL,
    seq           {{.Int}}  NOT NULL,
    failures      {{.Int}}  NOT NULL,
    next_at       {{.Int}},
    attempt_at    {{.Int}},
    status        {{.Int}}  NOT NULL,
    error         {{.Text}} NOT NULL,
    failing_since {{.Int}},
    delivered     {{.Int}}  NOT NULL,
    lost          {{.Int}}  NOT NULL,
    lost_up_to    {{.Int}}  NOT NULL,
    lost_at       {{.Int}},
    owner         {{.Text}} NOT NULL,
    claimed_until {{.Int}}
);

CREATE TABLE webhook_dead (
    webhook_id {{.Text}} NOT NULL REFERENCES webhooks (id),
    seq        {{.Int}}  NOT NULL,
    type       {{.Text}} NOT NULL,
    body       {{.Text}} NOT NULL,
    attempts   {{.Int}}  NOT NULL,
    status     {{.Int}}  NOT NULL,
    error      {{.Text}} NOT NULL,
    died_at    {{.Int}}  NOT NULL,
    due        {{.Int}}  NOT NULL,
    PRIMARY KEY (webhook_id, seq)
) {{.WithoutRowID}};

CREATE INDEX webhook_dead_age ON webhook_dead (died_at);
