package mqtt_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/identity"
	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/signing"
)

func csrPEM(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// claimant is an Endpoint with the door open, and a claim.
type claimant struct {
	*fixture
	s     *fleet.Service
	token fleet.EnrollmentToken
}

func newClaimant(t *testing.T) *claimant {
	t.Helper()
	ca, err := identity.Open(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key := func() signing.OnlineKey {
		k, err := signing.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		return signing.OnlineKey{Signer: k}
	}
	log := slog.New(slog.DiscardHandler)
	f := &fixture{t: t, out: &outgoing{}, store: memstore.New()}
	s := fleet.New(fleet.Config{
		Store: f.store, Publisher: &mqtt.Publisher{Broker: f.out, Now: time.Now}, CA: ca, Now: time.Now, Log: log,
		OnlineKeys: signing.Online{Snapshot: key(), Timestamp: key()}, DeviceURL: "https://ota.example:8444", MQTTURL: "mqtts://ota.example:8883",
	})
	f.e = mqtt.NewEndpoint(f.out, s, log, time.Now)
	f.e.Provisioning = true
	token, _, err := s.CreateEnrollmentToken(t.Context(), fleet.EnrollmentToken{Uses: 2, Hardware: "rpi4", DeviceGlob: "sn-*"})
	f.ok(err)
	return &claimant{f, s, token}
}

// ask sends one request and reads its one answer into a map.
func (c *claimant) ask(topic string, body any, wantSuffix string) map[string]any {
	c.t.Helper()
	encode, decode := json.Marshal, json.Unmarshal
	if strings.HasSuffix(topic, "/cbor") {
		encode, decode = cbor.Marshal, cbor.Unmarshal
	}
	payload, err := encode(body)
	c.ok(err)
	if text, ok := body.(string); ok {
		payload = []byte(text)
	}
	c.out.sent = nil
	c.ok(c.e.Handle(c.t.Context(), mqtt.Message{Topic: topic, Payload: payload, QoS: 1, Sender: c.token.ID}))
	var answer map[string]any
	if len(c.out.sent) != 1 || c.out.sent[0].Topic != topic+wantSuffix || decode(c.out.sent[0].Payload, &answer) != nil {
		c.t.Fatalf("%s: %s, want %s", topic, topics(c.out.sent), wantSuffix)
	}
	return answer
}

const (
	createFromCSR = "$aws/certificates/create-from-csr/"
	provision     = "$aws/provisioning-templates/default/provision/"
)

func TestProvisioningConversation(t *testing.T) {
	for _, format := range []string{"json", "cbor"} {
		c := newClaimant(t)
		got := c.ask(createFromCSR+format, map[string]any{"certificateSigningRequest": csrPEM(t)}, "/accepted")
		block, rest := pem.Decode([]byte(got["certificatePem"].(string)))
		if block == nil || len(rest) > 0 || len(got["certificateId"].(string)) != 64 || got["privateKey"] != nil {
			t.Fatalf("%v", got)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		c.ok(err)
		if _, err := c.s.AdmitCertificate(t.Context(), cert); err == nil {
			t.Fatal("the certificate is good before it was provisioned")
		}
		got = c.ask(provision+format, map[string]any{
			"certificateOwnershipToken": got["certificateOwnershipToken"], "parameters": map[string]string{"SerialNumber": "sn-1"},
		}, "/accepted")
		d, err := c.s.AdmitCertificate(t.Context(), cert)
		c.ok(err)
		if got["thingName"] != "sn-1" || d.ID != "sn-1" || d.Hardware != "rpi4" {
			t.Fatalf("%v, %+v", got, d)
		}
		var configuration []string
		switch m := got["deviceConfiguration"].(type) { // the CBOR library has its own map
		case map[string]any:
			for k := range m {
				configuration = append(configuration, k)
			}
		case map[any]any:
			for k := range m {
				configuration = append(configuration, k.(string))
			}
		}
		slices.Sort(configuration)
		if strings.Join(configuration, " ") != "deviceUrl hardware mqttUrl" {
			t.Errorf("configuration %v", configuration)
		}
	}
}

func TestProvisioningRefusals(t *testing.T) {
	c := newClaimant(t)
	ownership := func() any {
		return c.ask(createFromCSR+"json", map[string]any{"certificateSigningRequest": csrPEM(t)}, "/accepted")["certificateOwnershipToken"]
	}
	with := func(id string) map[string]any {
		return map[string]any{"certificateOwnershipToken": ownership(), "parameters": map[string]string{"ThingName": id}}
	}
	c.ask(provision+"json", with("sn-1"), "/accepted")
	for name, r := range map[string]struct {
		topic  string
		body   any
		status int
		code   string
	}{
		"a key made on the server": {"$aws/certificates/create/json", "", 403, "Forbidden"},
		"no JSON":                  {createFromCSR + "json", "{", 400, "InvalidPayload"},
		"no CBOR":                  {createFromCSR + "cbor", "{", 400, "InvalidPayload"},
		"a wrong type":             {createFromCSR + "json", `{"certificateSigningRequest":1}`, 400, "InvalidPayload"},
		"too much":                 {createFromCSR + "json", `{"x":"` + strings.Repeat("x", mqtt.MaxProvisionRequest) + `"}`, 400, "InvalidPayload"},
		"a long parameter":         {provision + "json", map[string]any{"parameters": map[string]string{"a": strings.Repeat("x", mqtt.MaxParameterBytes)}}, 400, "InvalidPayload"},
		"no request":               {createFromCSR + "json", "", 400, "InvalidCsr"},
		"no token":                 {provision + "json", map[string]any{"parameters": map[string]string{"ThingName": "sn-2"}}, 400, "InvalidCertificateOwnershipToken"},
		"no name":                  {provision + "json", with(""), 400, "InvalidParameters"},
		"not its devices":          {provision + "json", with("gw-1"), 403, "Forbidden"},
		"another key":              {provision + "json", with("sn-1"), 409, "Conflict"},
		"another template":         {"$aws/provisioning-templates/x/provision/json", with("sn-2"), 404, "ResourceNotFound"},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.ask(r.topic, r.body, "/rejected")
			status, _ := got["statusCode"].(float64)
			if n, ok := got["statusCode"].(uint64); ok {
				status = float64(n)
			}
			if int(status) != r.status || got["errorCode"] != r.code || got["errorMessage"] == "" {
				t.Errorf("%v, want %d %s", got, r.status, r.code)
			}
		})
	}
	parameters := map[string]string{}
	for range mqtt.MaxParameters + 1 {
		parameters[rand.Text()] = ""
	}
	if got := c.ask(provision+"json", map[string]any{"parameters": parameters}, "/rejected"); got["errorCode"] != "InvalidPayload" {
		t.Errorf("%v", got)
	}
	c.ok(c.store.RevokeEnrollmentToken(t.Context(), c.token.ID, time.Now()))
	if got := c.ask(createFromCSR+"json", map[string]any{"certificateSigningRequest": csrPEM(t)}, "/rejected"); got["errorCode"] != "Forbidden" {
		t.Errorf("a revoked claim: %v", got)
	}
}

// Where the broker does not say who asks, or everybody could read the answer,
// nothing is done.
func TestProvisioningIsClosedWithoutASender(t *testing.T) {
	c := newClaimant(t)
	body, _ := json.Marshal(map[string]string{"certificateSigningRequest": csrPEM(t)})
	if sent := c.send(createFromCSR+"json", string(body)); len(sent) > 0 {
		t.Errorf("answered nobody: %s", topics(sent))
	}
	c.e.Provisioning = false
	c.out.sent = nil
	c.ok(c.e.Handle(t.Context(), mqtt.Message{Topic: createFromCSR + "json", Payload: body, Sender: c.token.ID}))
	if len(c.out.sent) > 0 {
		t.Errorf("answered through a closed door: %s", topics(c.out.sent))
	}
	for _, f := range mqtt.Filters {
		if mqtt.Matches(f, createFromCSR+"json") || mqtt.Matches(f, provision+"json") {
			t.Errorf("filter %s opens the door for every broker", f)
		}
	}
}

func TestProvisioningNeedsAClaim(t *testing.T) {
	c := newClaimant(t)
	for _, sender := range []string{"sn-1", "0000000000000000"} {
		c.token.ID = sender
		if got := c.ask(createFromCSR+"json", map[string]any{"certificateSigningRequest": csrPEM(t)}, "/rejected"); got["errorCode"] != "Forbidden" {
			t.Errorf("%s: %v", sender, got)
		}
	}
}

func FuzzProvision(f *testing.F) {
	f.Add("json", []byte(`{"certificateSigningRequest":"x","certificateOwnershipToken":"y","parameters":{"SerialNumber":"sn-1"}}`))
	seed, err := cbor.Marshal(map[string]any{"certificateOwnershipToken": "y", "parameters": map[string]string{"SerialNumber": "sn-1"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("cbor", seed)
	f.Fuzz(func(t *testing.T, format string, payload []byte) {
		if format != "cbor" {
			format = "json"
		}
		c := &fixture{t: t, out: &outgoing{}, store: memstore.New()}
		log := slog.New(slog.DiscardHandler)
		s := fleet.New(fleet.Config{Store: c.store, Publisher: &mqtt.Publisher{Broker: c.out, Now: time.Now}, Now: time.Now, Log: log})
		e := mqtt.NewEndpoint(c.out, s, log, time.Now)
		e.Provisioning = true
		if err := e.Handle(t.Context(), mqtt.Message{Topic: createFromCSR + format, Payload: payload, Sender: "c"}); err != nil {
			t.Fatal(err)
		}
		if len(c.out.sent) != 1 || !strings.HasSuffix(c.out.sent[0].Topic, "/rejected") {
			t.Fatalf("%s", topics(c.out.sent))
		}
	})
}
