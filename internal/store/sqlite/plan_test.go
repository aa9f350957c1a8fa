package sqlite

import (
	"context"
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/otad/otad/internal/store/sqlstore"
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
	for _, c := range []struct{ name, want string }{
		{"next execution", "executions_active (device_id=?"},
		{"newest attempt", "(rollout_id=? AND device_id=?"},
		{"progress", "USING COVERING INDEX executions_progress (rollout_id=?)"},
		{"cancel queued", "COVERING INDEX executions_progress (rollout_id=? AND status=?)"},
		{"busy device", "executions_one_in_progress (device_id=?)"},
		{"device history", "executions_device (device_id=?"},
		{"executions of a rollout", "(rollout_id=?"},
		{"devices", "SEARCH d USING PRIMARY KEY (id>?)"},
	} {
		plan := explain(t, db, sqlstore.HotQueries()[c.name])
		if !strings.Contains(plan, c.want) || strings.Contains(plan, "SCAN ") || c.name != "next execution" && strings.Contains(plan, "TEMP B-TREE") {
			t.Errorf("%s: want %q in the plan\n%s", c.name, c.want, plan)
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
