package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Webhook sends the events of the feed to a receiver, in order.
type Webhook struct {
	ID        string
	URL       string
	Types     []string // of events, or whole kinds, in order; none: all
	RolloutID string   // empty: of any rollout
	Key       WebhookKey
	OldKey    WebhookKey // signs too until OldUntil; zero: there is none
	OldUntil  time.Time
	State     WebhookState
	CreatedBy string // name of an API token
	CreatedAt time.Time
	Revision  int64 // raised by every change of an operator
	WebhookProgress
	// Owner is the replica that delivers, Until when at the latest another one may.
	Owner string
	Until time.Time
	// Dead counts dead letters, Due those of them that are to be tried again.
	Dead, Due int
	// Lost counts events that were neither delivered nor are to be had as dead
	// letters, the last of them LostUpTo, noticed at LostAt.
	Lost     int64
	LostUpTo int64
	LostAt   time.Time
}

// WebhookKey tells of which secret messages are signed with, and not the secret:
// that comes from Salt and a key of the server that no database has.
type WebhookKey struct {
	Salt string // lower-case hex
	Sum  string // lower-case hex sha256 of the secret
}

// WebhookState says whether events are sent.
type WebhookState string

// The states of a webhook. One is GONE when its receiver answered that it wants no
// more; an operator can resume it.
const (
	WebhookEnabled WebhookState = "ENABLED"
	WebhookPaused  WebhookState = "PAUSED"
	WebhookGone    WebhookState = "GONE"
)

// WebhookProgress is how far a webhook has come.
type WebhookProgress struct {
	Seq      int64     // the last event that was dealt with
	Failures int       // attempts at the one behind it
	NextAt   time.Time // of the next attempt; zero: at once
	// AttemptAt is when the last attempt was made, Status its HTTP status, 0 for
	// none, Error why it failed, empty when it did not.
	AttemptAt    time.Time
	Status       int
	Error        string
	FailingSince time.Time // zero: the last attempt did not fail
	Delivered    int64     // messages
}

// DeadLetter is a message that was given up.
type DeadLetter struct {
	WebhookID string
	Seq       int64 // of its event
	Type      string
	Body      string
	Attempts  int
	Status    int // of the last
	Error     string
	At        time.Time // when it was given up
	Due       bool      // it is to be tried again
}

// Limits of webhooks.
const (
	MaxWebhooks      = 100
	MaxWebhookURL    = 2048 // bytes
	MaxWebhookTypes  = 32
	MaxWebhookError  = 200 // bytes
	MaxDeadLetters   = 1000
	DeadLetterLife   = 30 * 24 * time.Hour
	MaxSecretOverlap = 7 * 24 * time.Hour
	deadDropped      = 1000 // in one transaction
)

// WebhookStore keeps webhooks.
type WebhookStore interface {
	// CreateWebhook fails with ErrConflict when the id exists or there are
	// MaxWebhooks.
	CreateWebhook(ctx context.Context, w Webhook) error
	Webhook(ctx context.Context, id string) (Webhook, error)
	Webhooks(ctx context.Context) ([]Webhook, error) // oldest first
	// ChangeWebhook writes the change. ErrStale when the stored Revision is not the
	// given one; otherwise it becomes one higher.
	ChangeWebhook(ctx context.Context, c WebhookChange) error
	// DeleteWebhook forgets it with its dead letters.
	DeleteWebhook(ctx context.Context, id string) error
}

// WebhookChange is what an operator makes of a webhook: URL, Types, RolloutID,
// keys and State are written, what belongs to the delivery is not.
type WebhookChange struct {
	Webhook
	Anew  bool   // attempts at the next event begin anew
	After *int64 // go on behind this event, and take the claim away; nil: where it is
}

// CourierStore keeps how far webhooks have come. One replica delivers at a time.
type CourierStore interface {
	// ClaimWebhook lets the owner deliver until a moment. ErrConflict when another
	// one has the claim at now, or the webhook is not ENABLED.
	ClaimWebhook(ctx context.Context, id, owner string, now, until time.Time) (Webhook, error)
	// SaveDelivery writes what was done under a claim and returns the webhook as it
	// stands. ErrStale: another one has the claim, or it was taken away. What is dead
	// already is replaced; of more than MaxDeadLetters the first ones are lost.
	SaveDelivery(ctx context.Context, d Delivery) (Webhook, error)
	// DeadLetters returns up to limit behind a number, in order of their numbers.
	DeadLetters(ctx context.Context, f DeadLetterFilter, limit int) ([]DeadLetter, error)
	// Redeliver makes dead letters Due, all of a webhook when none are named, and
	// says how many of those named there are. ErrNotFound: no such webhook.
	Redeliver(ctx context.Context, webhookID string, seqs []int64) (int, error)
	// DropDeadLetters loses about limit that were given up before the moment, the
	// oldest first. It says whether there may be more.
	DropDeadLetters(ctx context.Context, before, now time.Time, limit int) (more bool, err error)
}

// Delivery is what was done under a claim since it was last written.
type Delivery struct {
	WebhookID string
	Owner     string
	Now       time.Time
	Until     time.Time // the claim is good until then; zero: it is given back
	WebhookProgress
	Gone     bool         // an ENABLED webhook becomes GONE
	Dead     []DeadLetter // given up
	Done     []int64      // dead letters that were delivered
	Spare    bool         // no dead letter is Due any more
	Lost     int64        // so many events more are lost,
	LostUpTo int64        // the last of them this one
}

// DeadLetterFilter says which dead letters are meant.
type DeadLetterFilter struct {
	WebhookID string
	After     int64
	Due       bool // only those
}

// EventType is the type of an event in webhooks: its kind and where it went, such
// as rollout.paused or execution.timed_out. What drifted is execution.drifted.
func EventType(e ota.Event) string {
	if e.Kind == ota.EventExecution && e.Class == ota.ClassDrifted {
		return typeDrifted
	}
	return string(e.Kind) + "." + strings.ToLower(e.To)
}

const typeDrifted = string(ota.EventExecution) + ".drifted"

// EventTypes lists what EventType may return, and the kinds, each of which stands
// for all of its own.
func EventTypes() []string {
	list := []string{string(ota.EventRelease), EventType(ota.Event{Kind: ota.EventRelease, To: string(ota.ReleaseWithdrawn)}), string(ota.EventRollout)}
	for _, s := range ota.RolloutStates {
		list = append(list, EventType(ota.Event{Kind: ota.EventRollout, To: string(s)}))
	}
	list = append(list, string(ota.EventStage))
	for _, s := range ota.StageStates {
		list = append(list, EventType(ota.Event{Kind: ota.EventStage, To: string(s)}))
	}
	list = append(list, string(ota.EventExecution))
	for _, s := range ota.Statuses {
		list = append(list, EventType(ota.Event{Kind: ota.EventExecution, To: string(s)}))
	}
	return append(list, typeDrifted)
}

// Wants reports whether the event is to be sent.
func (w Webhook) Wants(e ota.Event) bool {
	if w.RolloutID != "" && e.RolloutID != w.RolloutID {
		return false
	}
	return len(w.Types) == 0 || slices.Contains(w.Types, string(e.Kind)) || slices.Contains(w.Types, EventType(e))
}

// webhookTypes checks and orders the types that are asked for.
func webhookTypes(types []string) ([]string, error) {
	if len(types) > MaxWebhookTypes {
		return nil, fmt.Errorf("%w: %d types of events: at most %d; a kind such as execution stands for all of its own", ErrInvalid, len(types), MaxWebhookTypes)
	}
	known := EventTypes()
	for _, t := range types {
		if !slices.Contains(known, t) {
			return nil, fmt.Errorf("%w: type of events %.60q: want one of %s", ErrInvalid, t, strings.Join(known, ", "))
		}
	}
	types = slices.Clone(types)
	slices.Sort(types)
	return slices.Compact(types), nil
}

// webhookURL checks an address that events are to be sent to. Which machines may be
// called is the sender's to say.
func webhookURL(text string) (*url.URL, error) {
	bad := func(why string) error { return fmt.Errorf("%w: URL of a webhook: %s", ErrInvalid, why) }
	if len(text) > MaxWebhookURL {
		return nil, bad(fmt.Sprintf("%d bytes, at most %d", len(text), MaxWebhookURL))
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, bad("want printable ASCII; encode the rest with %")
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, bad("it can not be read") // the text of the error repeats it, with what may be secret
	case u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "":
		return nil, bad("want one such as https://example.com/hooks")
	case !validPort(u.Port()):
		return nil, bad("no port has that number: want 1 to 65535")
	case u.User != nil:
		return nil, bad("it holds a name or password: messages are signed, the receiver needs neither")
	case u.Fragment != "" || strings.HasSuffix(text, "#"):
		return nil, bad("it has a fragment (#), which is never sent")
	}
	return u, nil
}

// validPort reports whether there is such a port; none stands for the scheme's own.
func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return port == "" || err == nil && n > 0
}

// eventData is an event as the JSON form of the API has it.
type eventData struct {
	Seq       int64     `json:"seq,string"`
	At        time.Time `json:"at"`
	RolloutID string    `json:"rolloutId,omitempty"`
	Kind      string    `json:"kind"`
	Stage     int       `json:"stage,omitempty"`
	DeviceID  string    `json:"deviceId,omitempty"`
	Attempt   int       `json:"attempt,omitempty"`
	From      string    `json:"from,omitempty"`
	To        string    `json:"to"`
	Class     string    `json:"class,omitempty"`
	Count     int       `json:"count,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	Release   string    `json:"release,omitempty"`
}

// webhookBody is the body of a message, of the shape that Standard Webhooks 1.0.0
// recommends ("Payload structure").
func webhookBody(e RolloutEvent) ([]byte, error) {
	return json.Marshal(map[string]any{
		"type": EventType(e.Event), "timestamp": e.At.UTC(),
		"data": eventData{
			e.Seq, e.At.UTC(), e.RolloutID, string(e.Kind), e.Stage, e.DeviceID, e.Attempt, e.From, e.To, string(e.Class), e.Count, e.Reason, e.Release.String(),
		},
	})
}
