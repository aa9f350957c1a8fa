// Package memstore is fleet.Store in memory: maps under one mutex. It is the
// readable model of what a store does, used in tests and as the oracle that the
// other stores are compared with. Nothing outlives the process, and it is not
// made for large fleets.
package memstore

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// Store keeps everything in maps. Values are copied on the way in and out;
// shadow trees are shared, since pkg/shadow treats them as immutable.
type Store struct {
	mu         sync.Mutex
	devices    map[string]fleet.Device
	tokens     map[string]fleet.EnrollmentToken
	apiTokens  map[string]fleet.APIToken
	shadows    map[shadowKey]shadow.Document // tombstones stay, for their version
	releases   map[ota.ReleaseID]ota.Release
	metadata   map[fleet.Role][]fleet.Metadata // ascending versions without a gap
	rollouts   map[string]ota.Rollout
	groups     map[string]group
	executions map[string]map[string][]ota.Execution // rollout, device, attempts in order
	lines      map[line]map[int]ota.Candidate        // by turn
	state      map[string][]byte                     // of the embedded broker
	uploads    map[attempt]fleet.Upload
	pairs      map[attempt]fleet.Pair
	feed       feed
	webhooks   map[string]fleet.Webhook
	dead       map[string]map[int64]fleet.DeadLetter // by webhook and event
	telling    []ota.Event                           // of the running operation

	credentials map[string][]fleet.Credential // by device
	evictions   map[string]fleet.Eviction
	issuers     map[string]fleet.Issuer
	replicas    map[string]time.Time
	provisioned map[string]provisioned // by certificate id
	events      map[string]eventLog    // by device

	certificates map[string]fleet.Certificate  // by serial number
	deleted      map[string]deletedCertificate // by serial number too
	claims       map[string]claimCertificate   // by serial number too

	marks    map[string]mark            // by device
	relooks  map[string]map[string]bool // by rollout, of devices
	left     map[attempt]bool           // who left a line; the attempt is 0
	lastMark int64
}

var _ fleet.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{
		devices:    map[string]fleet.Device{},
		tokens:     map[string]fleet.EnrollmentToken{},
		apiTokens:  map[string]fleet.APIToken{},
		shadows:    map[shadowKey]shadow.Document{},
		releases:   map[ota.ReleaseID]ota.Release{},
		metadata:   map[fleet.Role][]fleet.Metadata{},
		rollouts:   map[string]ota.Rollout{},
		groups:     map[string]group{},
		executions: map[string]map[string][]ota.Execution{},
		uploads:    map[attempt]fleet.Upload{},
		pairs:      map[attempt]fleet.Pair{},
		lines:      map[line]map[int]ota.Candidate{},
		state:      map[string][]byte{},
		webhooks:   map[string]fleet.Webhook{},
		dead:       map[string]map[int64]fleet.DeadLetter{},

		credentials: map[string][]fleet.Credential{},
		evictions:   map[string]fleet.Eviction{},
		issuers:     map[string]fleet.Issuer{},
		replicas:    map[string]time.Time{},
		provisioned: map[string]provisioned{},
		events:      map[string]eventLog{},

		certificates: map[string]fleet.Certificate{},
		deleted:      map[string]deletedCertificate{},
		claims:       map[string]claimCertificate{},
		marks:        map[string]mark{},
		relooks:      map[string]map[string]bool{},
		left:         map[attempt]bool{},
	}
}

// Ping implements fleet.Store.
func (s *Store) Ping(ctx context.Context) error { return ctx.Err() }

// Close implements fleet.Store.
func (s *Store) Close() error { return nil }

// locked runs one operation under the mutex, unless its caller has gone.
func (s *Store) locked(ctx context.Context, f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	s.telling = nil
	err := f()
	if err == nil {
		s.tellAll()
	}
	return err
}

func notFound(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), fleet.ErrNotFound)
}

// stored is a time as a store keeps it.
func stored(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Microsecond)
}

// copied returns a map of its own; an empty one and none are the same.
func copied(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

// each calls f for the items in order until it says stop or the caller goes.
func each[T any](ctx context.Context, items []T, f func(T) bool) error {
	for _, item := range items {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !f(item) {
			return nil
		}
	}
	return nil
}
