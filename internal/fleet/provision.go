package fleet

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"

	"github.com/otad/otad/pkg/enroll"
	"github.com/otad/otad/pkg/ota"
)

// Fleet provisioning is the second door to enrollment, in two steps: a
// certificate for a key, which stands for nobody yet, and then the device that it
// is to stand for. Whoever comes has a claim: an enrollment token, shown by its
// secret or by a certificate that was issued for it.

// ProvisionLife is how long a certificate waits for its device: the life of its
// ownership token.
const ProvisionLife = time.Hour

// ProvisionTemplate is the template that every claim may name; the claim's own
// id is the other.
const ProvisionTemplate = "default"

// MaxClaimRequests is how many requests one claim may make in ClaimWindow.
const (
	MaxClaimRequests = 600
	ClaimWindow      = time.Minute
)

// Common names of certificates that are no device's. No device id has a space,
// so nobody can take them for one.
const (
	// ClaimName begins the name of a claim certificate; the token's id follows.
	ClaimName       = "otad claim "
	provisionedName = "otad provisioned"
)

// ErrOwnership: a certificate ownership token is not one of ours, is over, or was
// given to another claim.
var ErrOwnership = errors.New("certificate ownership token is not valid")

// Claim reports whether a connection came with claim credentials, and the
// enrollment token's id that they are of: a claim certificate, or the token's id
// as user name and its secret, or the token's whole text, as password. claim is
// false for all others, whoever they are. ErrDenied: the token is unknown,
// revoked, over or used up.
func (s *Service) Claim(ctx context.Context, certs []*x509.Certificate, username string, password []byte) (tokenID string, claim bool, err error) {
	if len(certs) > 0 {
		id, ok := strings.CutPrefix(certs[0].Subject.CommonName, ClaimName)
		if !ok {
			return "", false, nil
		}
		_, err := s.claim(ctx, id)
		return id, true, err
	}
	secret, ok := claimSecret(password)
	if !ok || username == "" {
		return "", false, nil
	}
	t, err := s.Store.EnrollmentToken(ctx, username)
	if errors.Is(err, ErrNotFound) {
		return "", false, nil
	} else if err != nil {
		return "", false, err
	}
	if sum := sha256.Sum256(secret[:]); subtle.ConstantTimeCompare(sum[:], t.SecretHash[:]) != 1 {
		return "", false, nil
	}
	return t.ID, true, t.usable(s.Now())
}

func claimSecret(password []byte) (secret [32]byte, ok bool) {
	if t, err := enroll.Parse(string(password)); err == nil {
		return t.Secret, true
	}
	b, err := base64.RawURLEncoding.DecodeString(string(password))
	if err != nil || len(b) != len(secret) {
		return secret, false
	}
	return [32]byte(b), true
}

// claim is the token of a claim, if it is still good.
func (s *Service) claim(ctx context.Context, tokenID string) (EnrollmentToken, error) {
	t, err := s.Store.EnrollmentToken(ctx, tokenID)
	if errors.Is(err, ErrNotFound) {
		return t, fmt.Errorf("%w: claim %.80q is of no enrollment token here", ErrDenied, tokenID)
	} else if err != nil {
		return t, err
	}
	return t, t.usable(s.Now())
}

// CreateClaim is CreateEnrollmentToken, and returns a client certificate for the
// key of csr (PEM) that shows the token as its secret does, for as long as the
// token is good. It is no device's certificate and opens nothing but provisioning.
func (s *Service) CreateClaim(ctx context.Context, t EnrollmentToken, csr []byte) (EnrollmentToken, [32]byte, []byte, error) {
	request, err := parseKeyRequest(csr)
	if err != nil {
		return EnrollmentToken{}, [32]byte{}, nil, err
	}
	t, secret, err := s.CreateEnrollmentToken(ctx, t)
	if err != nil {
		return EnrollmentToken{}, [32]byte{}, nil, err
	}
	chain, err := s.CA.IssueUntil(request, ClaimName+t.ID, s.Now(), t.ExpiresAt)
	if err != nil {
		return EnrollmentToken{}, [32]byte{}, nil, err
	}
	leaf, err := leafOf(chain)
	if err == nil {
		err = s.Store.PutClaimCertificate(ctx, t.ID, Certificate{Serial: leaf.SerialNumber, Ends: leaf.NotAfter}, s.Now())
	}
	if err != nil {
		return EnrollmentToken{}, [32]byte{}, nil, fmt.Errorf("issue certificate for claim %s: %w", t.ID, err)
	}
	return t, secret, chain, nil
}

// RevokeEnrollmentToken lets nobody in by the token any more, nor by its claim
// certificate.
func (s *Service) RevokeEnrollmentToken(ctx context.Context, id string) error {
	if err := s.Store.RevokeEnrollmentToken(ctx, id, s.Now()); err != nil {
		return err
	}
	s.signals.raise(revocation)
	s.logger(ctx).Info("enrollment token revoked", "token", id)
	return nil
}

// Candidate is a certificate that stands for no device yet.
type Candidate struct {
	ID        string // lower-case hex sha256 of the certificate in DER
	PEM       []byte // the certificate alone
	Ownership string // to be shown with the device's id, within ProvisionLife
}

// CertificateFromCSR issues a certificate for the key of a PEM request, whatever
// name stands in it. It lets nobody in before Provision.
func (s *Service) CertificateFromCSR(ctx context.Context, tokenID string, csr []byte) (Candidate, error) {
	if err := s.claimed.count(tokenID, s.Now()); err != nil {
		return Candidate{}, err
	}
	if _, err := s.claim(ctx, tokenID); err != nil {
		return Candidate{}, err
	}
	request, err := parseKeyRequest(csr)
	if err != nil {
		return Candidate{}, err
	}
	now := s.Now()
	chain, err := s.CA.Issue(request, provisionedName, now)
	if err != nil {
		return Candidate{}, fmt.Errorf("issue certificate for claim %s: %w", tokenID, err)
	}
	leaf, err := leafOf(chain)
	if err != nil {
		return Candidate{}, fmt.Errorf("issue certificate for claim %s: %w", tokenID, err)
	}
	o := ownership{
		expires: now.Add(ProvisionLife), certificate: sha256.Sum256(leaf.Raw),
		key: sha256.Sum256(request.RawSubjectPublicKeyInfo), claim: tokenID,
		serial: leaf.SerialNumber, ends: leaf.NotAfter,
	}
	token, err := s.signOwnership(o)
	if err != nil {
		return Candidate{}, err
	}
	return Candidate{ID: hex.EncodeToString(o.certificate[:]), PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), Ownership: token}, nil
}

// Provisioning is the second step.
type Provisioning struct {
	Claim      string // enrollment token's id
	Template   string
	Ownership  string
	Parameters map[string]string // ThingName, DeviceId or SerialNumber; Hardware
}

// deviceParameters name the device, the first that is given.
var deviceParameters = []string{"ThingName", "DeviceId", "SerialNumber"}

// Provision makes the certificate of the ownership token stand for the device
// that the parameters name, by the rules of the claim's token, as Enroll would.
// The same token and device again is not an error, as answers get lost; the same
// token with another device is ErrDenied, an id with another key ErrConflict.
func (s *Service) Provision(ctx context.Context, p Provisioning) (Device, error) {
	if err := s.claimed.count(p.Claim, s.Now()); err != nil {
		return Device{}, err
	}
	if p.Template != ProvisionTemplate && p.Template != p.Claim {
		return Device{}, fmt.Errorf("%w: provisioning template %.80q; use %q", ErrNotFound, p.Template, ProvisionTemplate)
	}
	o, err := s.readOwnership(p.Ownership, p.Claim)
	if err != nil {
		return Device{}, err
	}
	d := Device{KeyFingerprint: hex.EncodeToString(o.key[:]), Hardware: p.Parameters["Hardware"]}
	for _, name := range deviceParameters {
		if d.ID = p.Parameters[name]; d.ID != "" {
			break
		}
	}
	if err := enrollable(d.ID, d.Hardware); err != nil {
		return Device{}, fmt.Errorf("parameters %s: %w", strings.Join(deviceParameters, " or "), err)
	}
	certificate := hex.EncodeToString(o.certificate[:])
	// A token that is used up by this very device must not refuse its second try.
	if done, err := s.Store.ProvisionedDevice(ctx, certificate); err == nil && done.ID == d.ID && !done.Revoked() {
		return done, nil
	}
	if _, err := s.claim(ctx, p.Claim); err != nil {
		return Device{}, err
	}
	d, err = s.Store.Provision(ctx, d, BoundCertificate{ID: certificate, Serial: o.serial, Ends: o.ends}, p.Claim, s.Now())
	if err != nil {
		return Device{}, err
	}
	s.Look()
	s.logger(ctx).Info("device provisioned", "device", d.ID, "hardware", d.Hardware, "claim", p.Claim, "key", d.KeyFingerprint)
	return d, nil
}

// provisionedBy is the device that a certificate of this door stands for.
func (s *Service) provisionedBy(ctx context.Context, cert *x509.Certificate) (Device, error) {
	sum := sha256.Sum256(cert.Raw)
	d, err := s.Store.ProvisionedDevice(ctx, hex.EncodeToString(sum[:]))
	if errors.Is(err, ErrNotFound) {
		return Device{}, fmt.Errorf("%w: the certificate stands for no device: it was not provisioned, or replaced by a newer one", ErrDenied)
	}
	return d, err
}

// ownership is what an ownership token says, signed, so that nothing is kept for
// certificates that nobody comes back for.
type ownership struct {
	expires     time.Time
	certificate [32]byte // sha256 of the DER form
	key         [32]byte // sha256 of the public key
	claim       string
	serial      *big.Int  // of the certificate, at most maxSerial bytes long
	ends        time.Time // of the certificate
}

const (
	ownershipFormat = 2
	ownershipBody   = 1 + 8 + 32 + 32 + maxSerial + 8
	// maxSerial is how long a serial number may be (RFC 5280, 4.1.2.2).
	maxSerial = 20
)

func (o ownership) body() []byte {
	b := append(make([]byte, 0, ownershipBody+sha256.Size), ownershipFormat)
	b = binary.BigEndian.AppendUint64(b, uint64(o.expires.Unix()))
	b = append(append(b, o.certificate[:]...), o.key[:]...)
	b = append(b, o.serial.FillBytes(make([]byte, maxSerial))...)
	return binary.BigEndian.AppendUint64(b, uint64(o.ends.Unix()))
}

func (s *Service) signOwnership(o ownership) (string, error) {
	body := o.body()
	mac, err := s.ownershipMAC(body, o.claim)
	return base64.RawURLEncoding.EncodeToString(append(body, mac...)), err
}

// readOwnership is the only way to an ownership from outside.
func (s *Service) readOwnership(token, claim string) (ownership, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) != ownershipBody+sha256.Size || b[0] != ownershipFormat {
		return ownership{}, fmt.Errorf("%w: it is not one of this server; ask for a certificate again", ErrOwnership)
	}
	body, mac := b[:ownershipBody], b[ownershipBody:]
	want, err := s.ownershipMAC(body, claim)
	if err != nil {
		return ownership{}, err
	}
	if !hmac.Equal(mac, want) {
		return ownership{}, fmt.Errorf("%w: it was given to another claim, or by another server; ask for a certificate again", ErrOwnership)
	}
	o := ownership{
		expires:     time.Unix(int64(binary.BigEndian.Uint64(body[1:])), 0),
		certificate: [32]byte(body[9:]), key: [32]byte(body[41:]), claim: claim,
		serial: new(big.Int).SetBytes(body[73 : 73+maxSerial]), ends: time.Unix(int64(binary.BigEndian.Uint64(body[73+maxSerial:])), 0),
	}
	if !s.Now().Before(o.expires) {
		return ownership{}, fmt.Errorf("%w: it is over since %s; ask for a certificate again", ErrOwnership, o.expires.UTC().Format(time.RFC3339))
	}
	return o, nil
}

// ownershipMAC is the same on all replicas, which share the online keys, and
// after a restart.
func (s *Service) ownershipMAC(body []byte, claim string) ([]byte, error) {
	secret, err := s.OnlineKeys.Timestamp.Sign([]byte("otad certificate ownership"))
	if err != nil {
		return nil, fmt.Errorf("ownership key: %w", err)
	}
	key := sha256.Sum256(secret)
	m := hmac.New(sha256.New, key[:])
	m.Write(body)
	m.Write([]byte(claim))
	return m.Sum(nil), nil
}

// claimCounts counts the requests of each claim in the running window.
type claimCounts struct {
	mu    sync.Mutex
	since time.Time
	n     map[string]int
}

// count is ErrBusy when the claim has made too many in this window.
func (c *claimCounts) count(claim string, now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil || now.Sub(c.since) >= ClaimWindow || now.Before(c.since) {
		c.since, c.n = now, map[string]int{}
	}
	if c.n[claim]++; c.n[claim] > MaxClaimRequests {
		return fmt.Errorf("%w: more than %d requests of claim %s in %s; try again then", ErrBusy, MaxClaimRequests, claim, ClaimWindow)
	}
	return nil
}

// enrollable reports an id or a hardware model that no device may have.
func enrollable(id, hardware string) error {
	if err := ota.ValidateDeviceID(id); err != nil {
		return err
	}
	if Reserved(id) {
		return fmt.Errorf("%w: device id %q is a name of the server itself; choose another", ErrInvalid, id)
	}
	if hardware == "" {
		return nil
	}
	return ota.ValidateWord("hardware model", hardware)
}
