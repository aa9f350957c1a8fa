package device

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/otad/otad/pkg/enroll"
)

// restartEnv makes the test binary play an agent that restarts.
const restartEnv = "DEVICE_TEST_RESTART"

func TestMain(m *testing.M) {
	if stage := os.Getenv(restartEnv); stage != "" {
		playRestart(stage)
		return
	}
	goleak.VerifyTestMain(m)
}

const deviceID = "gw-1"

// office is otad's HTTPS door: enrollment and renewal, and 404 for the rest.
type office struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	root   []byte
	url    string
	mqtt   string
	mu     sync.Mutex
	status int      // of the next answers; 0: work
	keys   [][]byte // public keys that were enrolled
	life   time.Duration
}

func newOffice(t *testing.T) *office {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := &office{key: key, life: 90 * 24 * time.Hour, root: trustRoot(t), mqtt: "mqtts://" + closedPort(t)}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	o.cert = o.sign(ca, key.Public())
	leaf := o.sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, key.Public())
	s := httptest.NewUnstartedServer(o)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, o.cert.Raw}, PrivateKey: key}},
		ClientAuth:   tls.RequestClientCert,
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	o.url = s.URL
	return o
}

// closedPort is an address where nobody answers.
func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (o *office) sign(template *x509.Certificate, pub any) *x509.Certificate {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-time.Minute)
	template.NotAfter = template.NotBefore.Add(o.life)
	parent := o.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, o.key)
	if err != nil {
		panic(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
}

func (o *office) issue(csrText string) (string, []byte) {
	block, _ := pem.Decode([]byte(csrText))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		panic(err)
	}
	leaf := o.sign(&x509.Certificate{Subject: csr.Subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, csr.PublicKey)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})), csr.RawSubjectPublicKeyInfo
}

func (o *office) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var q struct{ DeviceID, Hardware, CSR string }
	if r.URL.Path != "/enroll" && r.URL.Path != "/renew" || json.NewDecoder(r.Body).Decode(&q) != nil {
		w.WriteHeader(404)
		return
	}
	cert, key := o.issue(q.CSR)
	o.keys = append(o.keys, key)
	if o.status != 0 {
		w.WriteHeader(o.status)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{
		"deviceId": q.DeviceID, "hardware": q.Hardware, "certificate": cert, "mqttUrl": o.mqtt,
		"ca":   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.cert.Raw})),
		"root": base64.StdEncoding.EncodeToString(o.root),
	})
}

func (o *office) answer(status int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.status = status
}

func (o *office) config(dir string) EnrollConfig {
	token := enroll.Token{CASHA256: sha256.Sum256(o.cert.Raw), RootSHA256: sha256.Sum256(o.root)}
	return EnrollConfig{Dir: dir, ServerURL: o.url, Token: token.String(), DeviceID: deviceID, Hardware: "rpi4"}
}
