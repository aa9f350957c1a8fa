-- Where a COMMIT may stay without an answer, each writer leaves the token of its
-- last transaction, so that it can be asked for.

-- +goose Up
{{if .Postgres}}
CREATE TABLE commits (
	writer TEXT COLLATE "C" PRIMARY KEY,
	token BIGINT NOT NULL,
	at TIMESTAMPTZ NOT NULL
);
{{else}}
SELECT 1;
{{end}}
