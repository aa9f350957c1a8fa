package postgres_test

import (
	"strings"
	"testing"
)

// TestCheckFindsWhatIsBroken breaks invariants of devices and their groups
// behind the store's back, and behind that of the foreign keys.
func TestCheckFindsWhatIsBroken(t *testing.T) {
	url := server.Schema(t)
	s := open(t, url)
	for _, c := range []struct{ name, sql, want string }{
		{"seen", `INSERT INTO device_seen VALUES ('x', 1)`, "last seen belongs to no device: x"},
		{"connection", `INSERT INTO device_connections VALUES ('x', 1, 1, 1, '', 'r')`, "connection belongs to no device: x"},
		{"credential", `INSERT INTO device_credentials VALUES ('c', 'x', 'key', 's', '', 1)`, "credential belongs to no device: c"},
		{"passwords", `INSERT INTO device_credentials VALUES ('c', 'a', 'password', 's', '', 1), ('e', 'a', 'password', 's', '', 1)`, "more than one password: a"},
		{"kind", `INSERT INTO device_credentials VALUES ('c', 'a', 'eye', 's', '', 1)`, "credential is of an unknown kind: c"},
		{"eviction", `INSERT INTO device_evictions VALUES ('x', 1, 'r')`, "eviction is of no device, and not for its deletion: x"},
		{"issuer", `INSERT INTO jwt_issuers VALUES ('i', '[', '', 1)`, "keys of JWT issuer i are not JSON"},
		{"provisioned", `INSERT INTO provisioned VALUES ('c', 'x', 1)`, "certificate stands for no device: c"},
		{"events", `INSERT INTO device_event_logs VALUES ('a', 'l', 1, 1)`, "does not stand where its log says: a"},
		{"no member", `INSERT INTO device_groups VALUES ('g', 1, 'id = "a"', 1, NULL)`, "device a is in dynamic group g: false, its selector says true"},
		{"stranger", `INSERT INTO device_groups VALUES ('g', 1, 'id = "none"', 1, NULL); INSERT INTO group_members VALUES ('g', 'a')`,
			"device a is in dynamic group g: true, its selector says false"},
		{"filled", `INSERT INTO device_groups VALUES ('g', 1, 'id = "a"', 1, 'a')`, "device a is in dynamic group g: false, its selector says true"},
		{"lost group", `INSERT INTO group_members VALUES ('x', 'a')`, "member is of no group: a in x"},
		{"lost member", `INSERT INTO device_groups VALUES ('g', 0, '', 1, NULL); INSERT INTO group_members VALUES ('g', 'x')`, "member of a group is no device: g: x"},
		{"static group", `INSERT INTO device_groups VALUES ('g', 0, 'id = a', 1, NULL)`, "a static group has a selector: g"},
		{"group selector", `INSERT INTO device_groups VALUES ('g', 1, '(', 1, NULL)`, "group g has a selector that can not be read"},
		{"lost execution", `INSERT INTO executions (rollout_id, device_id, attempt, latest, stage, status, class, version, queued_at, updated_at, details)
			VALUES ('r', 'x', 1, 1, 0, 'QUEUED', '', 1, 1, 1, '{}')`, "what is not finished is on no device: r on x attempt 1"},
		{"execution of nothing", `INSERT INTO executions (rollout_id, device_id, attempt, latest, stage, status, class, version, queued_at, updated_at, details)
			VALUES ('r', 'a', 1, 1, 0, 'QUEUED', '', 1, 1, 1, '{}')`, "execution is of no rollout: r on a attempt 1"},
		{"nothing", ``, ""},
	} {
		empty(t, url)
		tamper(t, url, `SET session_replication_role = replica;
			INSERT INTO devices (id, hardware, tags, key_fingerprint, created_at) VALUES ('a', 'h', '{}', 'k', 1);`+c.sql)
		broken, err := s.Check(t.Context())
		must(t, err)
		if c.want == "" && len(broken) > 0 || !strings.Contains(strings.Join(broken, "\n"), c.want) {
			t.Errorf("%s: want %q in %q", c.name, c.want, broken)
		}
	}
}
