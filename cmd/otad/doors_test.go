package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/golang-jwt/jwt/v5"

	"github.com/otad/otad/agent"
	agentmqtt "github.com/otad/otad/agent/mqtt"
	"github.com/otad/otad/internal/fleet"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// keyAndRequest is a new key and a certificate request for it.
func keyAndRequest(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func pair(t *testing.T, chain []byte, key *ecdsa.PrivateKey) *tls.Certificate {
	t.Helper()
	c := &tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		c.Certificate = append(c.Certificate, block.Bytes)
	}
	var err error
	c.Leaf, err = x509.ParseCertificate(c.Certificate[0])
	must(t, err)
	return c
}

// client is a device or a claim at the broker.
type client struct {
	*paho.Client
	got chan *paho.Publish
}

// dial connects; without a certificate by user name and password.
func (o *otad) dial(cert *tls.Certificate, id, user, password string) (*client, error) {
	o.t.Helper()
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.roots}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	nc, err := tls.Dial("tcp", strings.TrimPrefix(o.at.MQTT, "mqtts://"), c)
	must(o.t, err)
	cli := newClient(nc)
	p := &paho.Connect{ClientID: id, KeepAlive: 30, CleanStart: true}
	if user != "" {
		p.UsernameFlag, p.Username, p.PasswordFlag, p.Password = true, user, true, []byte(password)
	}
	if _, err := cli.Connect(o.t.Context(), p); err != nil {
		_ = nc.Close()
		return nil, err
	}
	o.t.Cleanup(func() { _ = cli.Disconnect(&paho.Disconnect{}) })
	return cli, nil
}

// join connects with a password and a session that is to last.
func (o *otad) join(id, user, password string) (*client, *paho.Connack) {
	o.t.Helper()
	nc, err := tls.Dial("tcp", strings.TrimPrefix(o.at.MQTT, "mqtts://"), &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.roots})
	must(o.t, err)
	c := newClient(nc)
	hour := uint32(3600)
	ack, err := c.Connect(o.t.Context(), &paho.Connect{
		ClientID: id, KeepAlive: 30, UsernameFlag: true, Username: user, PasswordFlag: true, Password: []byte(password),
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &hour},
	})
	must(o.t, err)
	o.t.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) })
	return c, ack
}

func newClient(nc net.Conn) *client {
	c := &client{got: make(chan *paho.Publish, 100)}
	c.Client = paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(nc), PacketTimeout: 10 * time.Second,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			c.got <- p.Packet
			return true, nil
		}},
	})
	return c
}

// ask sends a request and returns the one answer, which comes without a
// subscription.
func (c *client) ask(t *testing.T, topic string, body, answer any) string {
	t.Helper()
	payload, err := json.Marshal(body)
	must(t, err)
	_, err = c.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: payload})
	must(t, err)
	select {
	case m := <-c.got:
		must(t, json.Unmarshal(m.Payload, answer))
		return strings.TrimPrefix(m.Topic, topic)
	case <-time.After(20 * time.Second):
		t.Fatalf("no answer to %s", topic)
		return ""
	}
}

type certificateAnswer struct {
	PEM       string `json:"certificatePem"`
	Ownership string `json:"certificateOwnershipToken"`
}

// A whole life through the second door, by both kinds of claim: claim, device,
// its events, and that no credential opens another's door.
func TestProvisioningOverTLS(t *testing.T) {
	o := start(t, filepath.Join(t.TempDir(), "data"))
	claimKey, claimCSR := keyAndRequest(t)
	created, err := o.devices.CreateEnrollmentToken(t.Context(), connect.NewRequest(&otadv1.CreateEnrollmentTokenRequest{Uses: 2, Hardware: "sensor", ClaimCsr: claimCSR}))
	must(t, err)
	claim := pair(t, created.Msg.GetClaimCertificate(), claimKey)
	byCertificate, err := o.dial(claim, "factory-line-3", "", "")
	must(t, err)
	bySecret, err := o.dial(nil, "factory-line-4", created.Msg.GetToken().GetId(), base64.RawURLEncoding.EncodeToString(created.Msg.GetSecret()))
	must(t, err)
	for id, c := range map[string]*client{"sn-1": byCertificate, "sn-2": bySecret} {
		cert := o.provision(c, id)
		o.isDevice(cert, id)
	}
	if _, err := bySecret.Publish(t.Context(), &paho.Publish{Topic: "$aws/things/sn-1/shadow/update", QoS: 1, Payload: []byte("{}")}); err == nil {
		t.Error("a claim may write a device's shadow")
	}
	if _, err := o.dial(nil, "x", created.Msg.GetToken().GetId(), base64.RawURLEncoding.EncodeToString(make([]byte, 32))); err == nil {
		t.Error("a claim with another secret is let in")
	}
	if status := o.get(claim); status != http.StatusForbidden {
		t.Errorf("a claim at the HTTPS door: %d", status)
	}
	if _, err := o.dial(claim, "factory-line-5", "", ""); err == nil {
		t.Error("a claim that is used up is let in")
	}
}

// provision goes through the door and returns the device's certificate.
func (o *otad) provision(c *client, id string) *tls.Certificate {
	t := o.t
	t.Helper()
	key, csr := keyAndRequest(t)
	var issued certificateAnswer
	if suffix := c.ask(t, "$aws/certificates/create-from-csr/json", map[string]string{"certificateSigningRequest": string(csr)}, &issued); suffix != "/accepted" {
		t.Fatalf("certificate: %s", suffix)
	}
	cert := pair(t, []byte(issued.PEM), key)
	if _, err := o.dial(cert, id, "", ""); err == nil {
		t.Error("a certificate is good before it was provisioned")
	}
	if status := o.get(cert); status != http.StatusForbidden {
		t.Errorf("HTTPS before provisioning: %d", status)
	}
	var done struct {
		ThingName string `json:"thingName"`
	}
	body := map[string]any{"certificateOwnershipToken": issued.Ownership, "parameters": map[string]string{"SerialNumber": id}}
	if suffix := c.ask(t, "$aws/provisioning-templates/default/provision/json", body, &done); suffix != "/accepted" || done.ThingName != id {
		t.Fatalf("provision: %s %+v", suffix, done)
	}
	return cert
}

// get asks the HTTPS door for metadata: 404 is a device's answer here, as nothing
// is signed.
func (o *otad) get(cert *tls.Certificate) int {
	o.t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: o.roots, MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*cert}}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get(o.at.Device + "/metadata/timestamp.json")
	must(o.t, err)
	must(o.t, resp.Body.Close())
	return resp.StatusCode
}

// isDevice sends events with the certificate as our agent does, and finds them in
// the device's history, trace id and all.
func (o *otad) isDevice(cert *tls.Certificate, id string) {
	t := o.t
	t.Helper()
	if status := o.get(cert); status != http.StatusNotFound {
		t.Errorf("HTTPS with a provisioned certificate: %d", status)
	}
	line, err := agentmqtt.New(agentmqtt.Config{
		URL: o.at.MQTT, DeviceID: id, CAs: o.roots, Certificate: func() *tls.Certificate { return cert },
	})
	must(t, err)
	defer line.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	events := []agent.Event{{Seq: 1, At: 1_700_000_000_000, Kind: agent.EventStart}, {Seq: 2, Kind: agent.EventState, Data: map[string]any{"to": "FETCH"}}}
	for range 2 { // again, as if the answer had been lost
		ack, err := line.SendEvents(ctx, "log-1", events)
		must(t, err)
		if ack != 2 {
			t.Fatalf("acknowledged up to %d", ack)
		}
	}
	got, err := o.devices.ListDeviceEvents(ctx, connect.NewRequest(&otadv1.ListDeviceEventsRequest{Id: id, PageSize: 1}))
	must(t, err)
	rest, err := o.devices.ListDeviceEvents(ctx, connect.NewRequest(&otadv1.ListDeviceEventsRequest{Id: id, PageToken: got.Msg.GetNextPageToken()}))
	must(t, err)
	list := append(got.Msg.GetEvents(), rest.Msg.GetEvents()...)
	if len(list) != 2 || list[0].GetKind() != "state" || list[0].GetData() != `{"to":"FETCH"}` || list[0].GetTrace() == "" ||
		list[1].GetKind() != "start" || list[1].GetAt().AsTime().UnixMilli() != 1_700_000_000_000 {
		t.Fatalf("history: %v", list)
	}
}

// Who has the id of a deleted device has none of what waited for that one, and stays.
func TestNewDeviceOfADeletedId(t *testing.T) {
	o := start(t, filepath.Join(t.TempDir(), "data"))
	const id = "sensor-1"
	password := func() string {
		_, err := o.devices.CreateDevice(t.Context(), connect.NewRequest(&otadv1.CreateDeviceRequest{Id: id, Hardware: "esp32"}))
		must(t, err)
		set, err := o.devices.SetDevicePassword(t.Context(), connect.NewRequest(&otadv1.SetDevicePasswordRequest{DeviceId: id}))
		must(t, err)
		return set.Msg.GetPassword()
	}
	session := func(clientID, password string) *client {
		c, ack := o.join(clientID, id, password)
		if ack.SessionPresent {
			t.Errorf("%s finds a session", clientID)
		}
		return c
	}
	first := password()
	for _, clientID := range []string{id, id + "/1"} {
		c := session(clientID, first)
		_, err := c.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "$aws/things/" + id + "/shadow/update/documents", QoS: 1}}})
		must(t, err)
		must(t, c.Disconnect(&paho.Disconnect{}))
	}
	_, err := o.shadows.UpdateShadow(t.Context(), connect.NewRequest(&otadv1.UpdateShadowRequest{DeviceId: id, Update: []byte(`{"state":{"desired":{"secret":1}}}`)}))
	must(t, err)
	_, err = o.devices.DeleteDevice(t.Context(), connect.NewRequest(&otadv1.DeleteDeviceRequest{Id: id}))
	must(t, err)
	second := password()
	var here *client
	for _, clientID := range []string{id + "/1", id} {
		here = session(clientID, second)
	}
	select {
	case <-here.Done():
		t.Error("the new device was thrown out")
	case m := <-here.got:
		t.Errorf("the new device got %s: %s", m.Topic, m.Payload)
	case <-time.After(2*fleet.EvictionPoll + time.Second):
	}
}

// With the embedded broker a device's own connection says whether it is online, not
// what is published about it; and none outlives the server.
func TestPresenceByConnection(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	o := start(t, data)
	const id = "sensor-1"
	_, err := o.devices.CreateDevice(t.Context(), connect.NewRequest(&otadv1.CreateDeviceRequest{Id: id, Hardware: "esp32"}))
	must(t, err)
	set, err := o.devices.SetDevicePassword(t.Context(), connect.NewRequest(&otadv1.SetDevicePasswordRequest{DeviceId: id}))
	must(t, err)
	want := func(o *otad, reachability, reason string) {
		t.Helper()
		got, err := o.devices.GetDevice(t.Context(), connect.NewRequest(&otadv1.GetDeviceRequest{Id: id}))
		must(t, err)
		if d := got.Msg.GetDevice(); d.GetReachability() != reachability || d.GetOfflineReason() != reason {
			t.Errorf("%s, %q; want %s, %q", d.GetReachability(), d.GetOfflineReason(), reachability, reason)
		}
	}
	say := func(c *client, online string) {
		t.Helper()
		_, err := c.Publish(t.Context(), &paho.Publish{Topic: "ota/" + id + "/presence", QoS: 1, Payload: []byte(`{"online":` + online + `}`)})
		must(t, err)
	}
	companion, _ := o.join(id+"/1", id, set.Msg.GetPassword())
	say(companion, "true")
	want(o, "unknown", "")
	own, _ := o.join(id, id, set.Msg.GetPassword())
	say(own, "false")
	say(companion, "false")
	want(o, "online", "")
	must(t, o.cmd.Process.Signal(syscall.SIGTERM))
	must(t, o.cmd.Wait())
	want(start(t, data), "offline", fleet.ReasonRestarted)
}

// A connection that began with a JWT ends with that, or with its issuer, whoever comes
// as its companion meanwhile; and no other one of the device does.
func TestConnectionsOfJWTs(t *testing.T) {
	o := start(t, filepath.Join(t.TempDir(), "data"))
	const id = "sensor-1"
	_, err := o.devices.CreateDevice(t.Context(), connect.NewRequest(&otadv1.CreateDeviceRequest{Id: id, Hardware: "esp32"}))
	must(t, err)
	set, err := o.devices.SetDevicePassword(t.Context(), connect.NewRequest(&otadv1.SetDevicePasswordRequest{DeviceId: id}))
	must(t, err)
	password := set.Msg.GetPassword()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	_, err = o.devices.AddDeviceKey(t.Context(), connect.NewRequest(&otadv1.AddDeviceKeyRequest{DeviceId: id, Key: public}))
	must(t, err)
	_, err = o.devices.CreateJwtIssuer(t.Context(), connect.NewRequest(&otadv1.CreateJwtIssuerRequest{Name: "iss", Keys: public}))
	must(t, err)
	sign := func(iss string, exp time.Time) string {
		text, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"sub": id, "aud": "otad", "iss": iss, "exp": exp.Unix()}).SignedString(key)
		must(t, err)
		return text
	}
	device, _ := o.join(id, id, sign(id, time.Now().Add(3*time.Second-fleet.JWTLeeway)))
	issued, _ := o.join(id+"/1", id, sign("iss", time.Now().Add(time.Hour)))
	stays, _ := o.join(id+"/2", id, password)
	_, err = o.devices.DeleteJwtIssuer(t.Context(), connect.NewRequest(&otadv1.DeleteJwtIssuerRequest{Name: "iss"}))
	must(t, err)
	_, err = o.devices.CreateJwtIssuer(t.Context(), connect.NewRequest(&otadv1.CreateJwtIssuerRequest{Name: "iss", Keys: public}))
	must(t, err) // before anybody looks: it is another one
	for what, c := range map[string]*client{"expired": device, "issuer": issued} {
		select {
		case <-c.Done():
		case <-time.After(20 * time.Second):
			t.Errorf("%s: the connection goes on", what)
		}
	}
	select {
	case <-stays.Done():
		t.Error("a companion with a password was thrown out")
	default:
	}
}
