package sqlite

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

const oneWebhook = `INSERT INTO webhooks VALUES ('w', 'https://example.com', '[]', '', 'a', 'b', '', '', NULL, 'ENABLED', '', 1, 1,
	0, 0, NULL, NULL, 0, '', NULL, 0, 0, 0, NULL, '', NULL); `

// TestCheckFindsWhatIsBroken breaks every invariant behind the store's back.
func TestCheckFindsWhatIsBroken(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "whole.db")
	populate(t, whole)
	content, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, sql, want string }{
		{"second in progress", `DROP INDEX executions_one_in_progress;
			UPDATE executions SET status = 'IN_PROGRESS', started_at = 1 WHERE device_id = 'b'`, "more than one execution IN_PROGRESS: b"},
		{"lost rollout", `DELETE FROM rollouts WHERE id = 'r'`, "execution is of no rollout: r on a attempt 1"},
		{"lost device", `DELETE FROM devices WHERE id = 'b'`, "what is not finished is on no device: r on b attempt 1"},
		{"status", `UPDATE executions SET status = 'DONE'`, "unknown status"},
		{"version", `UPDATE executions SET version = 0`, "version below 1"},
		{"finished", `UPDATE executions SET finished_at = 1 WHERE device_id = 'b'`, "finished_at is set exactly"},
		{"not finished", `UPDATE executions SET finished_at = NULL WHERE device_id = 'a'`, "finished_at is set exactly"},
		{"started", `UPDATE executions SET started_at = NULL`, "started_at is set from"},
		{"timer", `UPDATE executions SET expires_at = 1 WHERE device_id = 'b'`, "expires_at is set only on what is not finished, with expires_as: q on b"},
		{"timer of the finished", `UPDATE executions SET expires_at = 1, expires_as = 'silent' WHERE status = 'FAILED'`, "expires_at is set only on what is not finished, with expires_as: r on a attempt 1"},
		{"retry of an older attempt", `UPDATE executions SET retry_at = 1 WHERE status = 'FAILED'`, "retry_at is set only on the newest attempt, which did not succeed: r on a attempt 1"},
		{"retry of a success", `UPDATE executions SET retry_at = 1 WHERE status = 'SUCCEEDED'`, "retry_at is set only on the newest attempt, which did not succeed: q on a"},
		{"went back later", `UPDATE executions SET went_back_at = 1 WHERE status = 'FAILED'`, "went_back_at is set only on what the server ended: r on a attempt 1"},
		{"in flight", `UPDATE rollouts SET max_in_flight = 1 WHERE id = 'r'; UPDATE executions SET status = 'IN_PROGRESS', started_at = 1 WHERE status = 'QUEUED' AND rollout_id = 'r'`,
			"rollout has more in flight than it may: r"},
		{"lane", `UPDATE rollouts SET max_per_lane = 1 WHERE id = 'r'; UPDATE executions SET status = 'IN_PROGRESS', started_at = 1 WHERE status = 'QUEUED' AND rollout_id = 'r'`,
			"rollout has more in flight in a lane than it may: r"},
		{"no timer", `UPDATE rollouts SET in_progress_timeout = 1; UPDATE executions SET status = 'IN_PROGRESS', started_at = 1 WHERE device_id = 'b' AND rollout_id = 'r'`, "by the rollout's timeout at the latest: r on b"},
		{"late timer", `UPDATE rollouts SET in_progress_timeout = 1; UPDATE executions SET status = 'IN_PROGRESS', started_at = 1, expires_at = 3 WHERE device_id = 'b' AND rollout_id = 'r'`, "by the rollout's timeout at the latest: r on b"},
		{"class", `UPDATE executions SET class = '' WHERE device_id = 'a'`, "class is set exactly"},
		{"wrong class", `UPDATE executions SET class = 'succeeded' WHERE device_id = 'a'`, "class is set exactly"},
		{"two latest", `UPDATE executions SET latest = 1`, "latest marks the newest attempt only: r on a attempt 1"},
		{"no latest", `UPDATE executions SET latest = 0`, "latest marks the newest attempt only: r on b attempt 1"},
		{"gap", `UPDATE executions SET attempt = 3 WHERE attempt = 2`, "without a gap: r on a attempt 3"},
		{"older open", `UPDATE executions SET status = 'QUEUED' WHERE attempt = 1`, "an older attempt is finished"},
		{"stage", `UPDATE executions SET stage = 1`, "stage index 1 to 1 of 1"},
		{"target", `UPDATE rollouts SET stages = replace(stages, '"target":2', '"target":1') WHERE id = 'r'`, "its stages allow 1"},
		{"plan", `UPDATE rollouts SET stages = '['`, "rollout r can not be read"},
		{"ended", `UPDATE rollouts SET ended_at = 1`, "ended_at is set exactly"},
		{"lost release", `DELETE FROM releases`, "rollout is of no release: r"},
		{"command and release", `UPDATE rollouts SET command = '{}'`, "rollout is of a command and a release: r"},
		{"feed", `DELETE FROM rollout_events WHERE seq = 2`, "and should have those behind 0 up to"},
		{"webhook's state", oneWebhook + `UPDATE webhooks SET state = 'DONE'`, "webhook is in an unknown state: w"},
		{"webhook's place", oneWebhook + `UPDATE webhooks SET seq = 999999`, "webhook stands behind an event that there was not: w"},
		{"webhook's claim", oneWebhook + `UPDATE webhooks SET claimed_until = 1`, "webhook is claimed by nobody, or for ever: w"},
		{"webhook's secrets", oneWebhook + `UPDATE webhooks SET old_until = 1`, "webhook has two secrets without an end, or an end without two: w"},
		{"webhook's types", oneWebhook + `UPDATE webhooks SET types = '['`, "types of webhook w are not JSON"},
		{"lost dead letter", `INSERT INTO webhook_dead VALUES ('v', 7, '', '{}', 1, 0, '', 1, 0)`, "dead letter is of no webhook: v event 7"},
		{"dead letter's body", oneWebhook + `INSERT INTO webhook_dead VALUES ('w', 7, '', '{', 1, 0, '', 1, 0)`, "body of dead letter w 7 are not JSON"},
		{"dead letters", oneWebhook + `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1001)
			INSERT INTO webhook_dead SELECT 'w', i, '', '{}', 1, 0, '', 1, 0 FROM n`, "too many dead letters are kept: w"},
		{"lost pair", `INSERT INTO health_pairs (rollout_id, device_id, attempt, partner_id, from_at, until_at, outcomes) VALUES ('r', 'b', 2, 'a', 1, 2, '')`, "pair is of no execution: b in rollout r"},
		{"pair alone", `INSERT INTO health_pairs (rollout_id, device_id, attempt, partner_id, from_at, until_at, outcomes) VALUES ('r', 'a', 1, '', 1, 2, '')`, "pair has no partner and is not alone: a in rollout r"},
		{"lost partner", `INSERT INTO health_pairs (rollout_id, device_id, attempt, partner_id, from_at, until_at, outcomes) VALUES ('r', 'a', 1, 'x', 1, 2, '')`, "partner in a pair that is watched is no device: a in rollout r"},
		{"lost upload", `INSERT INTO uploads VALUES ('r', 'b', 2, 1, 1)`, "upload is of no execution: r on b"},
		{"signed", `UPDATE releases SET state = 'SIGNED'`, "signed_at is set"},
		{"manifest", `UPDATE releases SET manifest = '{'`, "manifest of release app@1 are not JSON"},
		{"lost shadow", `UPDATE shadows SET device_id = 'x'`, "shadow belongs to no device"},
		{"shadow version", `UPDATE shadows SET version = 0`, "shadow has a version below 1"},
		{"shadow text", `UPDATE shadows SET document = '{'`, "can not be read"},
		{"shadow beside", `UPDATE shadows SET version = 9`, "version 9 beside a document of version 1"},
		{"deleted shadow", `UPDATE shadows SET deleted_at = 1`, "empty exactly when it is deleted"},
		{"seen", `INSERT INTO device_seen VALUES ('x', 1)`, "last seen belongs to no device"},
		{"group without a member", `INSERT INTO device_groups VALUES ('g', 1, 'id = "a"', 1, NULL)`, "device a is in dynamic group g: false, its selector says true"},
		{"group with a stranger", `INSERT INTO device_groups VALUES ('g', 1, 'id = "none"', 1, NULL); INSERT INTO group_members VALUES ('g', 'b')`,
			"device b is in dynamic group g: true, its selector says false"},
		{"filled", `INSERT INTO device_groups VALUES ('g', 1, 'id = "a"', 1, 'a')`, "device a is in dynamic group g: false, its selector says true"},
		{"lost group", `INSERT INTO group_members VALUES ('x', 'a')`, "member is of no group: a in x"},
		{"lost member", `INSERT INTO device_groups VALUES ('g', 0, '', 1, NULL); INSERT INTO group_members VALUES ('g', 'x')`, "member of a group is no device: g: x"},
		{"group selector", `INSERT INTO device_groups VALUES ('g', 1, '(', 1, NULL)`, "group g has a selector that can not be read"},
		{"metadata", `INSERT INTO metadata VALUES ('root', 1, 'x'), ('root', 3, 'x')`, "without a gap: root"},
		{"metadata start", `INSERT INTO metadata VALUES ('targets', 2, 'x')`, "but for superseded ones: targets"},
		{"metadata kept", `INSERT INTO metadata VALUES ('snapshot', 17, 'x')`, "but for superseded ones: snapshot"},
		{"connection", `INSERT INTO device_connections VALUES ('x', 1, 1, 1, '', 'r')`, "connection belongs to no device: x"},
		{"credential", `INSERT INTO device_credentials VALUES ('c', 'x', 'key', 's', '', 1)`, "credential belongs to no device: c"},
		{"passwords", `INSERT INTO device_credentials VALUES ('c', 'a', 'password', 's', '', 1), ('e', 'a', 'password', 's', '', 1)`, "more than one password: a"},
		{"kind of credential", `INSERT INTO device_credentials VALUES ('c', 'a', 'eye', 's', '', 1)`, "credential is of an unknown kind: c"},
		{"eviction", `INSERT INTO device_evictions VALUES ('x', 1, 'r')`, "eviction is of no device, and not for its deletion: x"},
		{"issuer", `INSERT INTO jwt_issuers VALUES ('i', '[', '', 1)`, "keys of JWT issuer i are not JSON"},
		{"member listed and found", `INSERT INTO device_groups VALUES ('g', 0, 'id = a', 1, NULL)`, "a static group has a selector: g"},
		{"tags", `UPDATE devices SET tags = 'x'`, "tags of device a are not JSON"},
		{"certificate", `INSERT INTO provisioned VALUES ('c', 'x', 1)`, "certificate stands for no device: c"},
		{"issued certificate", `INSERT INTO device_certificates VALUES ('1f', 'x', 1)`, "certificate was given to no device: 1f"},
		{"events", `INSERT INTO device_event_logs VALUES ('x', 'l', 1, 1)`, "event belongs to no device: x"},
		{"lost events", `INSERT INTO device_event_logs VALUES ('a', 'l', 1, 1)`, "does not stand where its log says: a"},
		{"event heap", `INSERT INTO device_event_logs VALUES ('a', 'l', 501, 501);
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 501)
			INSERT INTO device_events SELECT 'a', i, 'l', i, 0, 0, 'k', '{}', '' FROM n`, "too many events of a device are kept: a"},
		{"uses", `UPDATE enrollment_tokens SET uses = -1`, "used too often"},
		{"index", `PRAGMA writable_schema = 1;
			UPDATE sqlite_schema SET rootpage = (SELECT SUM(rootpage) FROM sqlite_schema
			WHERE name IN ('executions_active', 'executions_device')) - rootpage WHERE name IN ('executions_active', 'executions_device')`,
			"database file: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "otad.db")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			tamper(t, path, c.sql)
			s, err := Open(context.Background(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			broken, err := s.Check(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(broken, "\n"), c.want) {
				t.Errorf("want %q in %q", c.want, broken)
			}
		})
	}
}

// populate leaves two rollouts, r with device a on its second attempt, and
// nothing broken.
func populate(t *testing.T, path string) {
	t.Helper()
	s, err := Open(context.Background(), path)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	ctx, now := context.Background(), time.Now()
	must(s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "t", Uses: 2}))
	for _, id := range []string{"a", "b"} {
		_, err = s.Enroll(ctx, fleet.Device{ID: id}, [32]byte{}, now)
		must(err)
	}
	_, err = s.UpdateShadow(ctx, "a", "", shadow.NewUpdate(nil, map[string]any{"k": "v"}), now)
	must(err)
	_, err = s.CreateRelease(ctx, ota.Release{Manifest: ota.Manifest{Name: "app", Version: "1"}})
	must(err)
	for _, id := range []string{"q", "r"} {
		r := ota.Rollout{
			ID: id, Release: ota.ReleaseID{Name: "app", Version: "1"}, State: ota.RolloutRunning,
			Stages: []ota.Stage{{Size: ota.Size{Count: 2}, State: ota.StageOpen, Target: 2}},
		}
		must(s.CreateRollout(ctx, r))
		must(s.Advance(ctx, fleet.Advance{Rollout: r, Now: now, Insert: []ota.Execution{
			{DeviceID: "a", Attempt: 1, Status: ota.Queued}, {DeviceID: "b", Attempt: 1, Status: ota.Queued},
		}}))
	}
	_, err = s.Report(ctx, ota.Report{RolloutID: "q", DeviceID: "a", Status: ota.Succeeded}, now)
	must(err)
	_, err = s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "a", Status: ota.Failed}, now)
	must(err)
	r, err := s.Rollout(ctx, "r")
	must(err)
	must(s.Advance(ctx, fleet.Advance{Rollout: r, Now: now, Insert: []ota.Execution{{DeviceID: "a", Attempt: 2, Status: ota.Queued}}}))
	broken, err := s.Check(ctx)
	must(err)
	if len(broken) > 0 {
		t.Fatalf("broken before anything was: %q", broken)
	}
	must(s.Close())
}

func tamper(t *testing.T, path, statements string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statements); err != nil {
		t.Fatal(err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "otad.db")
	populate(t, path)
	tamper(t, path, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`)
	if _, err := Open(context.Background(), path); err == nil || !strings.Contains(err.Error(), "schema version 99") {
		t.Fatalf("opened a database of the future: %v", err)
	}
	if _, err := Open(context.Background(), path); err == nil || strings.Contains(err.Error(), "in use") {
		t.Fatalf("the failed open kept the lock: %v", err)
	}
}
