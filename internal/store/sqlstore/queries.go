package sqlstore

import (
	"context"

	"github.com/otad/otad/internal/fleet"
)

// HotQueries returns, by name, the queries that must never scan a table however
// large the fleet is, so that each database can be asked how it would run them.
func HotQueries() map[string]string {
	history, _ := selectFiltered(fleet.ExecutionFilter{DeviceID: "d"})
	rollout, _ := selectFiltered(fleet.ExecutionFilter{RolloutID: "r", Active: true})
	return map[string]string{
		"next execution":          selectNext,
		"pending executions":      selectPending + "10",
		"next expiry":             selectExpiry,
		"last due":                selectLastDue,
		"due":                     selectDue,
		"held back and due":       selectHeld,
		"newest attempt":          selectNewest,
		"progress":                selectProgress,
		"cancel":                  "SELECT rollout_id, device_id, attempt" + selectQueued,
		"at work":                 selectAtWork,
		"went back":               selectWentBack,
		"cancel at work":          cancelBegun,
		"due again":               countDue,
		"next retry":              nextRetry,
		"rollouts that move":      selectMoving,
		"candidates":              selectCandidates,
		"turn":                    selectTurn,
		"busy devices":            selectBusyDevices,
		"remove of a device":      removeActive,
		"remove of the revoked":   updateRevoked,
		"busy device":             selectBusy,
		"device history":          history,
		"executions of a rollout": rollout,
		"devices":                 part{from: anyShadow, id: "d.id", lead: always, Bounds: Exactly(always), groups: noGroups}.page("", pageRows).SQL,
		"device":                  selectDevice,
		"place":                   selectPlace,
		"followed":                selectFollowed,
		"credentials":             selectCredentials,
		"evictions":               selectEvictions,
		"revoked certificates":    selectRevokedCertificates,
	}
}

// SelectQueries returns how the store reads a first page of the devices of q and
// how it counts them, for the same purpose.
func (s *Store) SelectQueries(ctx context.Context, q fleet.DeviceQuery) (page, count Condition, err error) {
	p, err := s.plan(ctx, q)
	return p.page(q.After, pageRows), p.count(), err
}
