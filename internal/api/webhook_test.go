package api_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/otad/otad/internal/webhook"
	otadv1 "github.com/otad/otad/proto/otad/v1"
	"github.com/otad/otad/proto/otad/v1/otadv1connect"
)

// delivered is a message as a receiver sees it.
type delivered struct {
	header http.Header
	body   []byte
}

// genuine is what a receiver does to be sure of a message, written from the
// specification alone.
func (d delivered) genuine(secret string) bool {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return false
	}
	m := hmac.New(sha256.New, key)
	fmt.Fprintf(m, "%s.%s.%s", d.header.Get("webhook-id"), d.header.Get("webhook-timestamp"), d.body)
	for one := range strings.FieldsSeq(d.header.Get("webhook-signature")) {
		got, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(one, "v1,"))
		if err == nil && hmac.Equal(got, m.Sum(nil)) {
			return true
		}
	}
	return false
}

// TestWebhooks: an operator makes a webhook, and its receiver gets the events as
// the API has them, which it can be sure of.
func TestWebhooks(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	p.enroll("gw-1")
	messages, status := make(chan delivered, 100), make(chan int, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		messages <- delivered{r.Header, body}
		select {
		case s := <-status:
			w.WriteHeader(s)
		default:
		}
	}))
	defer receiver.Close()
	allowed, err := webhook.ParseAllowed([]string{"127.0.0.0/8"})
	p.ok(err)
	p.fleet.Sender = webhook.New(allowed, "otad/test")
	next := func() delivered {
		t.Helper()
		select {
		case m := <-messages:
			return m
		case <-time.After(long):
			t.Fatal("nothing came")
		}
		return delivered{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.fleet.RunWebhooks(ctx) }()
	defer func() {
		cancel()
		p.ok(<-done)
	}()

	hooks := otadv1connect.NewWebhookServiceClient(p.client(p.token), p.url)
	made := must(p, hooks.CreateWebhook, &otadv1.CreateWebhookRequest{Url: receiver.URL + "/hook"})
	id, secret := made.GetWebhook().GetId(), made.GetSecret()
	if made.GetWebhook().GetState() != "ENABLED" || made.GetWebhook().GetCreatedBy() != "test" || !strings.HasPrefix(secret, "whsec_") {
		t.Errorf("made %v", made)
	}
	must(p, p.rollouts().CreateRollout, &otadv1.CreateRolloutRequest{Spec: &otadv1.RolloutSpec{
		Command: &otadv1.Command{Name: "reboot"}, Stages: []*otadv1.StageSpec{{Percent: 100}},
	}})
	events := otadv1connect.NewEventServiceClient(p.client(p.token), p.url)
	list := must(p, events.ListEvents, &otadv1.ListEventsRequest{}).GetEvents()
	if len(list) == 0 {
		t.Fatal("no events")
	}
	for _, e := range list {
		m := next()
		var body struct {
			Type, Timestamp string
			Data            json.RawMessage
		}
		p.ok(json.Unmarshal(m.body, &body))
		got := &otadv1.RolloutEvent{}
		p.ok(protojson.Unmarshal(body.Data, got))
		if !proto.Equal(got, e) || body.Type != e.GetKind()+"."+strings.ToLower(e.GetTo()) || m.header.Get("webhook-id") != fmt.Sprintf("%s-%d", id, e.GetSeq()) {
			t.Errorf("got %s, the API has %v", m.body, e)
		}
		if at, err := time.Parse(time.RFC3339Nano, body.Timestamp); err != nil || !at.Equal(e.GetAt().AsTime()) {
			t.Errorf("happened at %s, %v", body.Timestamp, err)
		}
		if !m.genuine(secret) || m.genuine("whsec_"+base64.StdEncoding.EncodeToString(make([]byte, 32))) {
			t.Errorf("signed %s", m.header.Get("webhook-signature"))
		}
	}

	rotated := must(p, hooks.RotateWebhookSecret, &otadv1.RotateWebhookSecretRequest{Id: id, Overlap: durationpb.New(time.Hour)})
	status <- http.StatusTeapot
	test := must(p, hooks.TestWebhook, &otadv1.TestWebhookRequest{Id: id})
	if m := next(); test.GetStatus() != http.StatusTeapot || !strings.Contains(test.GetError(), "418") || !m.genuine(secret) || !m.genuine(rotated.GetSecret()) ||
		!strings.Contains(string(m.body), `"type":"webhook.test"`) {
		t.Errorf("test: %v, %s", test, m.body)
	}
	changed := must(p, hooks.UpdateWebhook, &otadv1.UpdateWebhookRequest{Id: id, Types: &otadv1.WebhookTypes{Types: []string{"rollout"}}, Url: proto.String(receiver.URL)}).GetWebhook()
	if changed.GetUrl() != receiver.URL || len(changed.GetTypes()) != 1 || changed.GetOldSecretUntil() == nil {
		t.Errorf("changed %v", changed)
	}
	if w := must(p, hooks.UpdateWebhook, &otadv1.UpdateWebhookRequest{Id: id, Types: &otadv1.WebhookTypes{}}).GetWebhook(); len(w.GetTypes()) != 0 {
		t.Errorf("all types again: %v", w)
	}
	if w := must(p, hooks.PauseWebhook, &otadv1.PauseWebhookRequest{Id: id}).GetWebhook(); w.GetState() != "PAUSED" {
		t.Errorf("paused %v", w)
	}
	refused(p, hooks.RedeliverDeadLetters, &otadv1.RedeliverDeadLettersRequest{WebhookId: id}, connect.CodeAlreadyExists, "resume it first")
	if w := must(p, hooks.ResumeWebhook, &otadv1.ResumeWebhookRequest{Id: id}).GetWebhook(); w.GetState() != "ENABLED" || w.GetEnd() < int64(len(list)) {
		t.Errorf("resumed %v", w)
	}
	if n := must(p, hooks.RedeliverDeadLetters, &otadv1.RedeliverDeadLettersRequest{WebhookId: id}).GetCount(); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	if l := must(p, hooks.ListDeadLetters, &otadv1.ListDeadLettersRequest{WebhookId: id}).GetDeadLetters(); len(l) != 0 {
		t.Errorf("dead: %v", l)
	}
	if all := must(p, hooks.ListWebhooks, &otadv1.ListWebhooksRequest{}).GetWebhooks(); len(all) != 1 || all[0].GetId() != id {
		t.Errorf("listed %v", all)
	}
	refused(p, hooks.CreateWebhook, &otadv1.CreateWebhookRequest{Url: "http://10.0.0.1"}, connect.CodeInvalidArgument, "--webhook-allow 10.0.0.1/32")
	refused(p, hooks.RotateWebhookSecret, &otadv1.RotateWebhookSecretRequest{Id: id, Overlap: durationpb.New(1000 * time.Hour)}, connect.CodeInvalidArgument, "want 0s to 168h0m0s")
	must(p, hooks.DeleteWebhook, &otadv1.DeleteWebhookRequest{Id: id})
	refused(p, hooks.GetWebhook, &otadv1.GetWebhookRequest{Id: id}, connect.CodeNotFound, id)
	refused(p, hooks.ListDeadLetters, &otadv1.ListDeadLettersRequest{WebhookId: id}, connect.CodeNotFound, id)
	stranger := otadv1connect.NewWebhookServiceClient(p.client("otat_0_0"), p.url)
	refused(p, stranger.ListWebhooks, &otadv1.ListWebhooksRequest{}, connect.CodeUnauthenticated, "token")
}
