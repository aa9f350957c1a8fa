package http

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/enroll"
)

var factoryRoot = []byte(`{"signatures":[],"signed":{"_type":"root","version":1}}`)

// office is otad's enrollment door; change alters its honest reply.
type office struct {
	ca, inter issuer
	net       *pipes
	token     enroll.Token
	key       crypto.Signer
	got       enrollRequest
	change    func(*enrollReply)
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{ca: newCA(t, "otad root"), net: newLoopback(), key: newKey(t), change: func(*enrollReply) {}}
	o.inter = newCert(t, &o.ca, &x509.Certificate{
		Subject: pkix.Name{CommonName: "issuing"}, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, nil)
	o.token = enroll.Token{ID: [8]byte{1}, Secret: [32]byte{2, 31: 3}, CASHA256: o.ca.pin(), RootSHA256: sha256.Sum256(factoryRoot)}
	o.open(t, o.ca.server(t, serverHost))
	return o
}

func (o *office) open(t *testing.T, cert tls.Certificate) {
	o.net.serve(t, serverHost+":8443", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, o)
}

func (o *office) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != "/enroll" || json.NewDecoder(r.Body).Decode(&o.got) != nil {
		w.WriteHeader(400)
		return
	}
	csr, err := parseCSR(o.got.CSR)
	if err != nil || csr.Subject.CommonName != o.got.DeviceID {
		status(400, `{"error":{"code":"invalid","message":"bad csr"}}`)(w, r)
		return
	}
	reply := o.honest(csr)
	o.change(&reply)
	json.NewEncoder(w).Encode(reply)
}

func parseCSR(text string) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return csr, csr.CheckSignature()
}

func (o *office) honest(csr *x509.CertificateRequest) enrollReply {
	leaf := o.issue(o.got.DeviceID, csr.PublicKey, x509.ExtKeyUsageClientAuth, time.Now().Add(time.Minute))
	return enrollReply{
		DeviceID: o.got.DeviceID, Hardware: o.got.Hardware,
		Certificate: certPEM(leaf, o.inter.cert), CA: certPEM(o.ca.cert),
		Root: base64.StdEncoding.EncodeToString(factoryRoot), MQTTURL: "mqtts://otad.example:8883",
	}
}

func (o *office) issue(id string, key any, usage x509.ExtKeyUsage, from time.Time) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: o.ca.cert.SerialNumber, Subject: pkix.Name{CommonName: id}, NotBefore: from,
		NotAfter: from.Add(90 * 24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, o.inter.cert, key, o.inter.key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

func (o *office) enroll(ctx context.Context) (Identity, error) {
	return Enroll(ctx, Options{
		ServerURL: "https://" + serverHost + ":8443", Token: o.token.String(), DeviceID: deviceID,
		Hardware: "rpi4", Key: o.key, Dial: o.net.dial,
	})
}

func TestEnroll(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{newKey(t), p256} {
		o := newOffice(t)
		o.key = key
		id, err := o.enroll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if id.DeviceID != deviceID || id.Hardware != "rpi4" || id.MQTTURL != "mqtts://otad.example:8883" || string(id.Root) != string(factoryRoot) {
			t.Errorf("%+v", id)
		}
		if secret, err := base64.RawURLEncoding.DecodeString(o.got.Token); err != nil || [32]byte(secret) != o.token.Secret {
			t.Errorf("sent the token %q", o.got.Token)
		}
		chain, err := ParseCertificates(id.Certificate)
		if err != nil || len(chain) != 2 {
			t.Errorf("%d certificates, %v", len(chain), err)
		}
	}
}

// The device believes the token, not the server.
func TestServerThatHandsOutSomethingElseIsRefused(t *testing.T) {
	other := newCA(t, "otad root")
	for name, change := range map[string]func(o *office, r *enrollReply){
		"another trust root": func(o *office, r *enrollReply) {
			r.Root = base64.StdEncoding.EncodeToString([]byte(`{"signed":{"_type":"root","version":1,"evil":true}}`))
		},
		"no trust root":         func(o *office, r *enrollReply) { r.Root = "" },
		"trust root not base64": func(o *office, r *enrollReply) { r.Root = "{}" },
		"another CA":            func(o *office, r *enrollReply) { r.CA = certPEM(other.cert) },
		"two CAs":               func(o *office, r *enrollReply) { r.CA = certPEM(o.ca.cert, other.cert) },
		"no CA":                 func(o *office, r *enrollReply) { r.CA = "" },
		"another id":            func(o *office, r *enrollReply) { r.DeviceID = "gw-2" },
		"another hardware":      func(o *office, r *enrollReply) { r.Hardware = "rpi5" },
		"certificate for another id": func(o *office, r *enrollReply) {
			r.Certificate = certPEM(o.issue("gw-2", o.key.Public(), x509.ExtKeyUsageClientAuth, time.Now()), o.inter.cert)
		},
		"certificate for another key": func(o *office, r *enrollReply) {
			r.Certificate = certPEM(o.issue(deviceID, newKey(t).Public(), x509.ExtKeyUsageClientAuth, time.Now()), o.inter.cert)
		},
		"certificate for servers": func(o *office, r *enrollReply) {
			r.Certificate = certPEM(o.issue(deviceID, o.key.Public(), x509.ExtKeyUsageServerAuth, time.Now()), o.inter.cert)
		},
		"certificate that is over": func(o *office, r *enrollReply) {
			r.Certificate = certPEM(o.issue(deviceID, o.key.Public(), x509.ExtKeyUsageClientAuth, time.Now().AddDate(-1, 0, 0)), o.inter.cert)
		},
		"certificate of another CA": func(o *office, r *enrollReply) {
			r.Certificate = certPEM(other.device(t, deviceID, o.key).cert)
		},
		"another CA, and all of it": func(o *office, r *enrollReply) {
			r.CA, r.Certificate = certPEM(other.cert), certPEM(other.device(t, deviceID, o.key).cert)
		},
		"certificate without its issuer": func(o *office, r *enrollReply) {
			r.Certificate = r.Certificate[:strings.Index(r.Certificate, "-----END")+25]
		},
		"no certificate": func(o *office, r *enrollReply) { r.Certificate = "" },
		"a key for a certificate": func(o *office, r *enrollReply) {
			r.Certificate = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
		},
		"plain broker": func(o *office, r *enrollReply) { r.MQTTURL = "mqtt://otad.example:1883" },
		"no broker":    func(o *office, r *enrollReply) { r.MQTTURL = "" },
		"a huge reply": func(o *office, r *enrollReply) { r.MQTTURL = strings.Repeat("x", maxReply) },
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			o.change = func(r *enrollReply) { change(o, r) }
			id, err := o.enroll(t.Context())
			if err == nil {
				t.Fatalf("accepted %+v", id)
			}
			if !errors.Is(err, ErrIdentity) && !errors.Is(err, ErrReply) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%v", err)
			}
		})
	}
}

// Nobody but the server that the token names gets to see the secret.
func TestFalseServerNeverSeesTheSecret(t *testing.T) {
	other := newCA(t, "otad root")
	for name, cert := range map[string]func(o *office) tls.Certificate{
		"another CA": func(o *office) tls.Certificate { return other.server(t, serverHost) },
		"another CA, the pinned one shown beside it": func(o *office) tls.Certificate {
			c := other.server(t, serverHost)
			c.Certificate = append(c.Certificate, o.ca.cert.Raw)
			return c
		},
		"another host name": func(o *office) tls.Certificate { return o.ca.server(t, "evil.example") },
		"CA not shown": func(o *office) tls.Certificate {
			c := o.ca.server(t, serverHost)
			c.Certificate = c.Certificate[:1]
			return c
		},
		"a device's certificate": func(o *office) tls.Certificate {
			d := newCert(t, &o.ca, &x509.Certificate{
				Subject: pkix.Name{CommonName: serverHost}, DNSNames: []string{serverHost},
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			}, nil)
			return tls.Certificate{Certificate: [][]byte{d.cert.Raw, o.ca.cert.Raw}, PrivateKey: d.key}
		},
		"over": func(o *office) tls.Certificate {
			d := newCert(t, &o.ca, &x509.Certificate{
				Subject: pkix.Name{CommonName: serverHost}, DNSNames: []string{serverHost},
				NotBefore: time.Now().AddDate(-2, 0, 0), NotAfter: time.Now().AddDate(-1, 0, 0),
			}, nil)
			return tls.Certificate{Certificate: [][]byte{d.cert.Raw, o.ca.cert.Raw}, PrivateKey: d.key}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			o.open(t, cert(o)) // takes the address over
			id, err := o.enroll(t.Context())
			if !errors.Is(err, ErrIdentity) || errors.Is(err, agent.ErrUnreachable) {
				t.Errorf("%+v, %v", id, err)
			}
			if o.got.Token != "" {
				t.Error("the secret was sent")
			}
		})
	}
}

func TestEnrollRefusesBadInput(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := Options{ServerURL: "https://x", Token: enroll.Token{}.String(), DeviceID: "gw", Hardware: "rpi4", Key: newKey(t),
		Dial: newPipes().dial}
	if _, err := Enroll(t.Context(), good); !errors.Is(err, agent.ErrUnreachable) {
		t.Fatalf("%v", err)
	}
	for name, change := range map[string]func(*Options){
		"token":     func(o *Options) { o.Token = "otae_x" },
		"id":        func(o *Options) { o.DeviceID = "a/b" },
		"hardware":  func(o *Options) { o.Hardware = "" },
		"plain":     func(o *Options) { o.ServerURL = "http://x" },
		"no key":    func(o *Options) { o.Key = nil },
		"RSA key":   func(o *Options) { o.Key = rsaKey },
		"P-384 key": func(o *Options) { o.Key = p384 },
	} {
		o := good
		change(&o)
		if _, err := Enroll(t.Context(), o); err == nil || errors.Is(err, agent.ErrUnreachable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnrollErrors(t *testing.T) {
	for code, want := range map[int]error{401: ErrDenied, 403: ErrDenied, 409: ErrConflict, 500: agent.ErrUnreachable, 307: ErrReply} {
		n := newLoopback()
		ca := newCA(t, "root")
		n.serve(t, serverHost+":443", &tls.Config{Certificates: []tls.Certificate{ca.server(t, serverHost)}}, status(code, ""))
		_, err := Enroll(t.Context(), Options{ServerURL: "https://" + serverHost, Token: enroll.Token{CASHA256: ca.pin()}.String(),
			DeviceID: "gw", Hardware: "rpi4", Key: newKey(t), Dial: n.dial})
		if !errors.Is(err, want) {
			t.Errorf("%d: %v", code, err)
		}
	}
}

func TestRenew(t *testing.T) {
	key := newKey(t)
	var w *world
	id := deviceID
	w = newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		var q struct{ CSR string }
		if r.URL.Path != "/renew" || json.NewDecoder(r.Body).Decode(&q) != nil {
			rw.WriteHeader(400)
			return
		}
		csr, err := parseCSR(q.CSR)
		if err != nil || csr.Subject.CommonName != deviceID {
			rw.WriteHeader(400)
			return
		}
		json.NewEncoder(rw).Encode(map[string]string{"certificate": certPEM(w.ca.device(t, id, key).cert)})
	})
	chain, err := w.source.Renew(t.Context(), key, deviceID)
	if err != nil || !strings.HasPrefix(string(chain), "-----BEGIN CERT") {
		t.Fatalf("%v", err)
	}
	id = "gw-2"
	if _, err := w.source.Renew(t.Context(), key, deviceID); !errors.Is(err, ErrIdentity) {
		t.Errorf("another id: %v", err)
	}
	id = deviceID
	if _, err := w.source.Renew(t.Context(), newKey(t), deviceID); !errors.Is(err, ErrIdentity) {
		t.Errorf("another key: %v", err)
	}
}

// A fleet that enrolled in one day spreads its renewals over a week, and all of
// them leave a quarter of the life for trying again.
func TestRenewAtIsSpread(t *testing.T) {
	ca := newCA(t, "root")
	key := newKey(t)
	seen := map[string]bool{}
	for i := range 20 {
		leaf := ca.device(t, fmt.Sprintf("gw-%d", i), key).cert
		life := leaf.NotAfter.Sub(leaf.NotBefore)
		at := RenewAt(leaf)
		if at != RenewAt(leaf) {
			t.Fatal("not the same twice")
		}
		part := float64(at.Sub(leaf.NotBefore)) / float64(life)
		if part < 0.666 || part > 0.75 {
			t.Errorf("renewed at %.3f of the life", part)
		}
		seen[at.Format(time.DateOnly)] = true
	}
	if len(seen) < 4 {
		t.Errorf("20 devices renew on %d days", len(seen))
	}
}

func FuzzParseCertificates(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		chain, err := ParseCertificates(text)
		if err == nil && (len(chain) == 0 || len(chain) > maxChain) {
			t.Fatalf("%d certificates", len(chain))
		}
	})
}
