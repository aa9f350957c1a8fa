-- The certificates that were made for enrollment tokens, so that those of a revoked
-- token can be named to a broker that is not ours.

-- +goose Up
CREATE TABLE claim_certificates (
    serial   {{.Text}}  NOT NULL PRIMARY KEY,
    token_id {{.Text}}  NOT NULL REFERENCES enrollment_tokens (id),
    ends_at  {{.Int}}   NOT NULL
) {{.WithoutRowID}};

CREATE INDEX claim_certificates_end ON claim_certificates (ends_at, token_id);
