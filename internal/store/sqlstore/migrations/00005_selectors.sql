-- A shadow is opaque when it has what no database but SQLite can read in JSON: a
-- zero byte in a string, or a number that is very long or has a large exponent.
-- Selectors are evaluated in memory there.

-- +goose Up
ALTER TABLE shadows ADD COLUMN opaque {{.Int}} NOT NULL DEFAULT 0;
{{if .Postgres}}
UPDATE shadows SET opaque = 1 WHERE strpos(document, '\u0000') > 0 OR document ~ '[0-9][eE][-+]?[0-9]{4}|[0-9.]{200}';

CREATE INDEX devices_opaque ON devices (id) WHERE strpos(tags, '\u0000') > 0;

-- The value at a path, for an index: scalars only, and no text that is too long
-- for a row of an index.
-- +goose StatementBegin
CREATE FUNCTION otad_scalar(document TEXT, VARIADIC path TEXT[]) RETURNS JSONB LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    v JSONB := CAST(document AS JSONB);
    k TEXT;
BEGIN
    FOREACH k IN ARRAY path LOOP
        v := v -> k;
    END LOOP;
    CASE jsonb_typeof(v)
        WHEN 'number', 'boolean' THEN RETURN v;
        WHEN 'string' THEN RETURN CASE WHEN octet_length(v #>> '{}'::TEXT[]) <= 500 THEN v END;
        ELSE RETURN NULL;
    END CASE;
END $$;
-- +goose StatementEnd
{{end}}
CREATE INDEX shadows_opaque ON shadows (device_id) WHERE opaque = 1;
