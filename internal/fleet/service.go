package fleet

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/rawimage"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
	"github.com/otad/otad/pkg/signing"
)

// Publisher tells devices that something changed. It is called after the
// change is durable; a message that is lost is repaired when the device asks.
type Publisher interface {
	// NotifyNext tells the device what it shall work on next; nil: nothing. It is
	// called when that becomes another execution, not when the same one moves on.
	NotifyNext(ctx context.Context, deviceID string, next *ota.Execution) error
	// NotifyJobs tells the device what is pending for it, what is next first: at
	// most MaxNotified. It is called when one is added or taken away.
	NotifyJobs(ctx context.Context, deviceID string, pending []ota.Execution) error
	// ShadowUpdated sends accepted, delta and documents of an update to those
	// that listen.
	ShadowUpdated(ctx context.Context, deviceID, name string, r shadow.Result) error
	// Evict ends the sessions that e is about, where the broker can. It does not wait.
	Evict(e Eviction)
}

// CA issues device certificates.
type CA interface {
	// Issue signs the request's key for the device id and returns the leaf and
	// the issuing certificate in PEM. The request has been checked.
	Issue(csr *x509.CertificateRequest, deviceID string, now time.Time) (chainPEM []byte, err error)
	// IssueUntil is Issue for a certificate that ends then and is no device's: its
	// name can not be a device id.
	IssueUntil(csr *x509.CertificateRequest, name string, now, until time.Time) (chainPEM []byte, err error)
	// RevocationLists signs the list of these serial numbers, dated issued, and
	// whatever else a broker has to have beside it to check certificates of this CA:
	// X509 CRL blocks in PEM, good until expires.
	RevocationLists(revoked []x509.RevocationListEntry, issued, expires time.Time) ([]byte, error)
	// RootPEM is the certificate that everything chains to, RootSHA256 the
	// digest of its DER form.
	RootPEM() []byte
	RootSHA256() [32]byte
}

// Config is what a Service needs; all fields without a default are required.
type Config struct {
	Store      Store
	Blobs      blob.Store
	Publisher  Publisher
	CA         CA
	OnlineKeys signing.Online
	Now        func() time.Time
	Log        *slog.Logger
	// DeviceURL and MQTTURL are where devices reach this server.
	DeviceURL, MQTTURL string
	// JWTAudience is what aud of a device's JWT must hold. Empty: DefaultJWTAudience.
	JWTAudience string
	// Poll is how often the engine looks without being woken, for what another
	// replica changed. 0: 5 s.
	Poll time.Duration
	// MaxShadowBytes is how much desired and reported of one shadow may take
	// together. 0: shadow.MaxStateBytes.
	MaxShadowBytes int
	// NotifyRate is how many devices a second are told of what a rollout did to many
	// at once. 0: DefaultNotifyRate. Unpaced: as fast as can be.
	NotifyRate int
	// LinkLife is how long the download links in job documents are good, from
	// MinLinkLife to MaxLinkLife. 0: there are none.
	LinkLife time.Duration
	// Sender sends to webhooks; without one none can be made, changed or run.
	Sender WebhookSender
}

// Service is the set of use cases. Its methods may be called concurrently.
type Service struct {
	Config
	presence  *presence
	passwords *passwords
	tries     *tries
	refusals  *refusals
	vouchers  *vouchers
	evictions *evictions
	signals   *signals
	claims    *claims
	verifying chan struct{} // one element for each object that is read back
	streaming chan struct{} // one element for each read of a stream's file
	images    *rawimage.Reader
	claimed   claimCounts
	lists     lists
	turns     *turns
	wake      chan struct{}
	look      chan struct{}
	notifier  *notifier

	courierWake    chan struct{}
	webhookFigures atomic.Pointer[WebhookFigures]

	held      memory[ExecutionKey] // how far tellHeld came
	looked    memory[time.Time]    // when this replica looked at the pairs
	cancelled memory[time.Time]    // since when it cancels what waits, see tellCancelled
	beginning sync.Map             // ids of rollouts that are being created here
}

// New returns a Service; RunEngine must run for rollouts to move, RunNotifier for
// devices to be told, RunTimeouts for executions to time out, RunLooks for what
// devices say to count, RunWebhooks for events to be sent.
func New(c Config) *Service {
	if c.Poll == 0 {
		c.Poll = 5 * time.Second
	}
	if c.NotifyRate == 0 {
		c.NotifyRate = DefaultNotifyRate
	}
	if c.JWTAudience == "" {
		c.JWTAudience = DefaultJWTAudience
	}
	return &Service{
		Config: c, presence: newPresence(c.Now()), passwords: newPasswords(), tries: newTries(c.Now), refusals: newRefusals(c.Now), vouchers: newVouchers(), evictions: newEvictions(),
		signals: newSignals(), claims: newClaims(), turns: newTurns(),
		verifying: make(chan struct{}, MaxVerifying), streaming: make(chan struct{}, MaxStreamReads),
		images: rawimage.New(c.Blobs), wake: make(chan struct{}, 1), notifier: newNotifier(), look: make(chan struct{}, 1),
		courierWake: make(chan struct{}, 1),
	}
}

// newID returns prefix and 60 random bits in lower-case base32.
func newID(prefix string) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return prefix + strings.ToLower(base32.StdEncoding.EncodeToString(b[:])[:12])
}

func newSecret() (id string, secret [32]byte) {
	var b [8]byte
	_, _ = rand.Read(b[:])
	_, _ = rand.Read(secret[:])
	return hex.EncodeToString(b[:]), secret
}

// Check runs the store's invariants and sees that every image a signed release
// needs is there in full length. It returns every fault in words.
func (s *Service) Check(ctx context.Context) ([]string, error) {
	faults, err := s.Store.Check(ctx)
	if err != nil {
		return nil, err
	}
	releases, err := s.Store.Releases(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range releases {
		if r.State != ota.ReleaseSigned {
			continue
		}
		for key, size := range map[string]int64{imageKey(r.ImageDigest): r.ObjectSize, indexKey(r.IndexDigest): r.IndexSize} {
			info, err := s.Blobs.Stat(ctx, key)
			switch {
			case errors.Is(err, blob.ErrNotFound):
				faults = append(faults, fmt.Sprintf("release %s: object %s is missing", r.ID(), key))
			case err != nil:
				return nil, fmt.Errorf("check release %s: %w", r.ID(), err)
			case info.Size != size:
				faults = append(faults, fmt.Sprintf("release %s: object %s has %d bytes, the release says %d", r.ID(), key, info.Size, size))
			}
		}
	}
	return faults, nil
}
