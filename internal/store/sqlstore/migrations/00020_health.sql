-- Devices that were updated, each beside one that was not, and how they did.

-- +goose Up
CREATE TABLE health_pairs (
    rollout_id {{.Text}} NOT NULL,
    device_id  {{.Text}} NOT NULL,
    attempt    {{.Int}}  NOT NULL,
    partner_id {{.Text}} NOT NULL,
    from_at    {{.Int}}  NOT NULL,
    until_at   {{.Int}}  NOT NULL,
    outcomes   {{.Text}} NOT NULL,
    PRIMARY KEY (rollout_id, device_id, attempt)
) {{.WithoutRowID}};

-- Nobody is a partner twice.
CREATE UNIQUE INDEX health_partners ON health_pairs (rollout_id, partner_id) WHERE partner_id <> '';

-- What is watched, by when it is over.
CREATE INDEX health_watched ON health_pairs (rollout_id, until_at) WHERE outcomes = '';

-- Counts by outcomes.
CREATE INDEX health_outcomes ON health_pairs (rollout_id, outcomes, from_at);
