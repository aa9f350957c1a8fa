package http

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/otad/otad/pkg/enroll"
	"github.com/otad/otad/pkg/ota"
)

const (
	maxReply = 256 << 10 // bytes of an answer to enroll or renew
	maxRoot  = 64 << 10  // bytes of a TUF root
)

// Options is what Enroll needs. The key never leaves the device; only a request
// signed by it does.
type Options struct {
	ServerURL string // https://host[:port]
	Token     string // text of an enroll.Token
	DeviceID  string
	Hardware  string
	Key       crypto.Signer // ed25519, or ECDSA P-256

	Proxy func(*http.Request) (*url.URL, error) // nil: none
	Dial  DialFunc                              // nil: a net.Dialer
	Now   func() time.Time                      // nil: time.Now
}

type enrollRequest struct {
	Token    string `json:"token"`
	DeviceID string `json:"deviceId"`
	Hardware string `json:"hardware"`
	CSR      string `json:"csr"`
}

type enrollReply struct {
	DeviceID    string `json:"deviceId"`
	Hardware    string `json:"hardware"`
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
	Root        string `json:"root"`
	MQTTURL     string `json:"mqttUrl"`
}

// Enroll asks for a certificate for the device's key. The server must prove
// itself under the CA that the token pins, and what it hands out must fit the
// token's digests, the id and the key; otherwise it is ErrIdentity. ErrDenied is
// a token that the server does not accept, ErrConflict an id that has another
// key, enroll.ErrToken a text that is no token. Asking again with the same id
// and key is harmless.
func Enroll(ctx context.Context, o Options) (Identity, error) {
	token, err := enroll.Parse(o.Token)
	if err != nil {
		return Identity{}, err
	}
	if err := o.validate(); err != nil {
		return Identity{}, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	base, err := parseServerURL(o.ServerURL)
	if err != nil {
		return Identity{}, err
	}
	csr, err := certificateRequest(o.Key, o.DeviceID)
	if err != nil {
		return Identity{}, err
	}
	client := newClient(pinnedTLS(base.Hostname(), token.CASHA256, o.Now), o.Dial, o.Proxy)
	defer client.CloseIdleConnections()
	var reply enrollReply
	err = postJSON(ctx, client, base.JoinPath("enroll"), enrollRequest{
		Token:    base64.RawURLEncoding.EncodeToString(token.Secret[:]),
		DeviceID: o.DeviceID,
		Hardware: o.Hardware,
		CSR:      csr,
	}, &reply, o.Now)
	if err != nil {
		return Identity{}, err
	}
	return reply.identity(o, token)
}

func (o Options) validate() error {
	if err := ota.ValidateDeviceID(o.DeviceID); err != nil {
		return err
	}
	if o.Key == nil {
		return errors.New("enrollment needs a key")
	}
	return ota.ValidateWord("hardware model", o.Hardware)
}

// identity checks everything the server handed out against what was asked and
// what the token pins.
func (r enrollReply) identity(o Options, token enroll.Token) (Identity, error) {
	if r.DeviceID != o.DeviceID {
		return Identity{}, fmt.Errorf("%w: the server enrolled %q, asked was %q", ErrIdentity, printable(r.DeviceID), o.DeviceID)
	}
	if r.Hardware != o.Hardware {
		return Identity{}, fmt.Errorf("%w: the token is for hardware %q, this device is %q: use another token, or that model if it is the same",
			ErrIdentity, printable(r.Hardware), o.Hardware)
	}
	ca, err := ParseCertificates([]byte(r.CA))
	if err != nil {
		return Identity{}, fmt.Errorf("server's CA: %w", err)
	}
	if len(ca) != 1 || sha256.Sum256(ca[0].Raw) != token.CASHA256 {
		return Identity{}, fmt.Errorf("%w: the server sent another CA than the token names", ErrIdentity)
	}
	root, err := base64.StdEncoding.DecodeString(r.Root)
	if err != nil || len(root) > maxRoot || sha256.Sum256(root) != token.RootSHA256 {
		return Identity{}, fmt.Errorf("%w: the server sent another trust root than the token names", ErrIdentity)
	}
	chain, err := ParseCertificates([]byte(r.Certificate))
	if err != nil {
		return Identity{}, err
	}
	if err := VerifyCertificate(chain, ca[0], o.Key.Public(), o.DeviceID, o.Now()); err != nil {
		return Identity{}, err
	}
	if u, err := url.Parse(r.MQTTURL); err != nil || u.Scheme != "mqtts" || u.Hostname() == "" || u.Port() == "" || u.User != nil {
		return Identity{}, fmt.Errorf("%w: broker address %q: want mqtts://host:port", ErrReply, printable(r.MQTTURL))
	}
	return Identity{
		DeviceID:    r.DeviceID,
		Hardware:    r.Hardware,
		MQTTURL:     r.MQTTURL,
		Certificate: []byte(r.Certificate),
		CA:          []byte(r.CA),
		Root:        root,
	}, nil
}

// pinnedTLS accepts a server whose chain holds the CA certificate with this
// sha256 and verifies up to it for this host name. The standard verification is
// replaced, since its root is not known before the handshake.
func pinnedTLS(host string, pin [32]byte, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		InsecureSkipVerify:     true, // VerifyConnection does it
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyPinned(state.PeerCertificates, host, pin, now())
		},
	}
}

func verifyPinned(chain []*x509.Certificate, host string, pin [32]byte, now time.Time) error {
	opts := x509.VerifyOptions{DNSName: host, Intermediates: x509.NewCertPool(), CurrentTime: now}
	for i, c := range chain {
		if i > 0 && c.IsCA && c.BasicConstraintsValid && sha256.Sum256(c.Raw) == pin {
			opts.Roots = x509.NewCertPool()
			opts.Roots.AddCert(c)
			continue
		}
		opts.Intermediates.AddCert(c)
	}
	if opts.Roots == nil {
		return fmt.Errorf("%w: the server does not show the CA that the token names: it is another server, or the token is of another installation", ErrIdentity)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return fmt.Errorf("%w: server certificate (the device's clock says %s): %w", ErrIdentity, now.UTC().Format(time.DateOnly), err)
	}
	return nil
}

// Renew asks for a new certificate for the key that the current one holds and
// returns its chain, PEM.
func (s *Source) Renew(ctx context.Context, key crypto.Signer, id string) ([]byte, error) {
	csr, err := certificateRequest(key, id)
	if err != nil {
		return nil, err
	}
	request := struct {
		CSR string `json:"csr"`
	}{csr}
	var reply struct {
		Certificate string `json:"certificate"`
	}
	if err := postJSON(ctx, s.client, s.base.JoinPath("renew"), request, &reply, s.cfg.Now); err != nil {
		return nil, err
	}
	chain, err := ParseCertificates([]byte(reply.Certificate))
	if err != nil {
		return nil, err
	}
	if err := VerifyCertificate(chain, s.cfg.CA, key.Public(), id, s.cfg.Now()); err != nil {
		return nil, err
	}
	return []byte(reply.Certificate), nil
}

// postJSON sends a small document and reads a small one.
func postJSON(ctx context.Context, client *http.Client, u *url.URL, request, reply any, now func() time.Time) error {
	content, err := json.Marshal(request)
	if err != nil {
		return err
	}
	resp, err := send(ctx, client, http.MethodPost, u, http.Header{"Content-Type": {"application/json"}}, bytes.NewReader(content))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return statusError(resp, now())
	}
	raw, err := readSmall(resp, maxReply)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, reply); err != nil {
		return fmt.Errorf("%s: %w: %w", where(u), ErrReply, err)
	}
	return nil
}
