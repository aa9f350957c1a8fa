package sqlite

import (
	"context"
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/pkg/selector"
)

// TestHotQueriesUseTheirIndex keeps a query from turning into a scan unnoticed.
func TestHotQueriesUseTheirIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "otad.db")
	s, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	sorted := map[string]bool{"next execution": true, "pending executions": true, "revoked certificates": true, "rollouts that move": true, "at work": true} // few
	for _, c := range []struct{ name, want string }{
		{"next execution", "executions_active (device_id=?"},
		{"pending executions", "executions_active (device_id=?"},
		{"next expiry", "COVERING INDEX executions_expiry"},
		{"last due", "COVERING INDEX executions_expiry (expires_at<?)"},
		{"due", "executions_expiry (expires_at<?)"},
		{"held back and due", "executions_expiry (expires_at<?)"},
		{"due again", "COVERING INDEX executions_retry (rollout_id=? AND retry_at<?)"},
		{"next retry", "COVERING INDEX executions_retry (rollout_id=? AND retry_at>?)"},
		{"rollouts that move", "rollouts_state (state=? AND idle=?)"},
		{"candidates", "PRIMARY KEY (rollout_id=? AND line=? AND turn>?)"},
		{"turn", "COVERING INDEX candidates_device (rollout_id=? AND line=? AND device_id=?)"},
		{"place", "candidates_standing (rollout_id=? AND line=? AND device_id=?)"},
		{"busy devices", "COVERING INDEX executions_active (device_id>?)"},
		{"at work", "executions_progress (rollout_id=? AND status=?)"},
		{"went back", "executions_went_back (rollout_id=? AND "},
		{"cancel at work", "executions_progress (rollout_id=? AND status=?)"},
		{"remove of the revoked", "COVERING INDEX devices_revoked (revoked_at>?)"},
		{"newest attempt", "(rollout_id=? AND device_id=?"},
		{"progress", "execution_counts USING PRIMARY KEY (rollout_id=?)"},
		{"cancel", "COVERING INDEX executions_progress (rollout_id=? AND status=?)"},
		{"busy device", "executions_one_in_progress (device_id=?)"},
		{"device history", "executions_device (device_id=?"},
		{"executions of a rollout", "(rollout_id=?"},
		{"devices", "SEARCH d USING PRIMARY KEY (id>?)"},
		{"revoked certificates", "devices_revoked (revoked_at>?)"},
	} {
		plan := explain(t, db, sqlstore.HotQueries()[c.name])
		plan = strings.ReplaceAll(plan, "SCAN due\n", "") // what was found, of a bounded number
		if !strings.Contains(plan, c.want) || strings.Contains(plan, "SCAN ") || !sorted[c.name] && strings.Contains(plan, "TEMP B-TREE") {
			t.Errorf("%s: want %q in the plan\n%s", c.name, c.want, plan)
		}
	}
}

// TestSelectorsUseTheIndex of the fields they compare, and nothing else when
// there is none.
func TestSelectorsUseTheIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "otad.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fields, err := fleet.ParseIndexes([]string{"shadow.reported.firmware.version", "tags.site", "shadow.reported.battery"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.IndexFields(t.Context(), fields); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const ordered, sorted, none = "(<expr>=? AND ", "(<expr>", ""
	for expr, want := range map[string]string{
		`shadow.reported.firmware.version = "1.0"`:                                 ordered,
		`hardware = x AND shadow.reported.firmware.version = "1.0" AND NOT id = y`: ordered,
		`shadow.reported.battery < 20 AND tags.site = "paris"`:                     ordered,
		`shadow.reported.battery = 20`:                                             ordered,
		`shadow.reported.battery <= 20`:                                            sorted,
		`shadow.reported.firmware.version = "1.*"`:                                 sorted,
		`shadow.reported.firmware.version = "1.0" OR tags.site = "paris"`:          none,
		`NOT tags.site = "paris"`:                                                  none,
		`tags.site != "paris"`:                                                     none,
		`shadow.reported.firmware.version = "*1"`:                                  none,
		`shadow.reported.other = "1"`:                                              none,
	} {
		sel, err := selector.Parse(expr)
		if err != nil {
			t.Fatal(err)
		}
		page, count, err := s.SelectQueries(t.Context(), fleet.DeviceQuery{Selector: sel})
		if err != nil {
			t.Fatal(err)
		}
		for what, q := range map[string]sqlstore.Condition{"page": page, "count": count} {
			plan := explainWith(t, db, q.SQL, q.Args)
			used := strings.Contains(plan, "USING INDEX otad_field_") || strings.Contains(plan, "COVERING INDEX otad_field_")
			if used != (want != none) || !strings.Contains(plan, want) {
				t.Errorf("%s of %s: want %q\n%s\n%s", what, expr, want, plan, q.SQL)
			}
			if what == "page" && want != sorted && strings.Contains(plan, "TEMP B-TREE") {
				t.Errorf("%s of %s sorts\n%s", what, expr, plan)
			}
		}
	}
}

func explain(t *testing.T, db *sql.DB, query string) string {
	t.Helper()
	if query == "" {
		t.Fatal("no such query")
	}
	args := make([]any, strings.Count(query, "?"))
	for i := range args {
		args[i] = 1
	}
	return explainWith(t, db, query, args)
}

func explainWith(t *testing.T, db *sql.DB, query string, args []any) string {
	t.Helper()
	rows, err := db.Query("EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(detail + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}
