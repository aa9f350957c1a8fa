-- What came in through the other doors of the device plane: which certificate of
-- fleet provisioning stands for which device, and the events that devices sent.

-- +goose Up
CREATE TABLE provisioned (
    certificate_id {{.Text}}  NOT NULL PRIMARY KEY,
    device_id      {{.Text}}  NOT NULL REFERENCES devices (id),
    provisioned_at {{.Int}}   NOT NULL
) {{.WithoutRowID}};

CREATE INDEX provisioned_of_device ON provisioned (device_id);

-- How far each device's events are stored: the log that it writes now, the
-- number of the last one in it, and the position of the last one in device_events.
CREATE TABLE device_event_logs (
    device_id {{.Text}}  NOT NULL PRIMARY KEY REFERENCES devices (id),
    log       {{.Text}}  NOT NULL,
    seq       {{.Int}}   NOT NULL,
    position  {{.Int}}   NOT NULL
) {{.WithoutRowID}};

CREATE TABLE device_events (
    device_id   {{.Text}}  NOT NULL REFERENCES device_event_logs (device_id),
    position    {{.Int}}   NOT NULL,
    log         {{.Text}}  NOT NULL,
    seq         {{.Int}}   NOT NULL,
    at          {{.Int}},
    received_at {{.Int}}   NOT NULL,
    kind        {{.Text}}  NOT NULL,
    data        {{.Text}}  NOT NULL,
    trace       {{.Text}}  NOT NULL,
    PRIMARY KEY (device_id, position)
) {{.WithoutRowID}};
