package sqlstore

import "github.com/otad/otad/internal/fleet"

// HotQueries returns, by name, the queries that must never scan a table however
// large the fleet is, so that each database can be asked how it would run them.
func HotQueries() map[string]string {
	history, _ := selectFiltered(fleet.ExecutionFilter{DeviceID: "d"})
	rollout, _ := selectFiltered(fleet.ExecutionFilter{RolloutID: "r", Active: true})
	return map[string]string{
		"next execution":          selectNext,
		"newest attempt":          selectNewest,
		"progress":                selectProgress,
		"cancel queued":           updateQueued,
		"remove of a device":      removeActive,
		"busy device":             selectBusy,
		"device history":          history,
		"executions of a rollout": rollout,
		"devices":                 selectViews,
	}
}
