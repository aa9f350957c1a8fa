package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/otad/otad/pkg/enroll"
	"github.com/otad/otad/pkg/ota"
)

// Login is what a connection to the broker brings along.
type Login struct {
	Certificates []*x509.Certificate // the verified chain, leaf first; none without a client certificate
	ClientID     string
	Username     string
	Password     []byte
	Remote       net.Addr
}

// Admission is who a Login turned out to be.
type Admission struct {
	// Name is a device id; with Claim it is the id of an enrollment token, and the
	// connection may only ask for a certificate (fleet provisioning).
	Name  string
	Claim bool
	// Until is when a session that begins with it has to end, by whatever means the
	// device comes besides: that of its JWT, with JWTLeeway. Zero: it has no such end.
	Until time.Time
	// Voucher is the issuer of that JWT as it was then, see Eviction; empty: the
	// device itself signed.
	Voucher string
}

// Login says who a connection is. The strongest credential decides alone: a
// certificate, of a device or of a claim, and what stands beside it is ignored,
// since AWS's SDKs send a user name of theirs with it; else the password, which is a JWT, an enrollment token
// or a password of the device that the user name names, or the client id without
// one. ErrDenied when it is nobody.
//
// What is certain without much work (certificates, JWTs, tokens, passwords that
// nobody can guess or that were right before) is always looked at; other passwords
// have to wait after failures, see tries. Failures are logged here, once in a while
// and without what was sent. Not an ErrDenied is a fault of ours.
func (s *Service) Login(ctx context.Context, l Login) (Admission, error) {
	a, err := s.login(ctx, l)
	if errors.Is(err, ErrDenied) {
		if say, before := s.refusals.note(addressOf(l.Remote)); say {
			s.Log.Warn("device login refused; more from this address are not logged for a while",
				"remote", addressOf(l.Remote), "error", err, "unlogged", before)
		}
	}
	return a, err
}

func (s *Service) login(ctx context.Context, l Login) (Admission, error) {
	if id, claim, err := s.Claim(ctx, l.Certificates, l.Username, l.Password); err != nil {
		return Admission{}, err
	} else if claim {
		return Admission{Name: id, Claim: true}, nil
	}
	switch {
	case len(l.Certificates) > 0:
		d, err := s.AdmitCertificate(ctx, l.Certificates[0])
		return admitted(d.ID, err)
	case len(l.Password) == 0:
		return Admission{}, fmt.Errorf("%w: no credential: a device certificate, a password or a JWT is needed", ErrDenied)
	case len(l.Password) > MaxJWTBytes:
		return Admission{}, fmt.Errorf("%w: password of %d bytes, at most %d", ErrDenied, len(l.Password), MaxJWTBytes)
	case looksLikeJWT(l.Password):
		return s.loginJWT(ctx, l)
	case looksLikeClaim(l.Password):
		return s.loginClaim(ctx, l)
	}
	return s.loginPassword(ctx, l)
}

func admitted(deviceID string, err error) (Admission, error) {
	if err != nil {
		return Admission{}, err
	}
	return Admission{Name: deviceID}, nil
}

func (s *Service) loginPassword(ctx context.Context, l Login) (Admission, error) {
	id := l.Username
	if id == "" {
		id = l.ClientID
	}
	if err := ota.ValidateDeviceID(id); err != nil {
		return Admission{}, fmt.Errorf("%w: the user name is no device id", ErrDenied)
	}
	c, err := s.password(ctx, id)
	if err != nil {
		return Admission{}, err
	}
	if c == nil { // takes as long as a wrong password, so that nobody learns which devices exist
		c = &Credential{Secret: nobodysPassword}
	}
	if !s.passwords.known(id, c.Secret, l.Password) {
		right, err := s.judge(ctx, l, id, c.Secret)
		if err != nil {
			return Admission{}, err
		}
		if !right || c.DeviceID == "" {
			return Admission{}, fmt.Errorf("%w: wrong password, or no device %s with one", ErrDenied, id)
		}
	}
	return admitted(id, s.Known(ctx, id))
}

// judge checks a password that is not known yet, unless it can be guessed and who
// sends it has to wait.
func (s *Service) judge(ctx context.Context, l Login, deviceID, stored string) (right bool, err error) {
	if cheap(stored) {
		return s.passwords.check(ctx, deviceID, stored, l.Password)
	}
	y := try{address: addressOf(l.Remote), user: deviceID}
	if wait, say := s.tries.begin(y); wait > 0 {
		if say {
			s.Log.Warn("a device has to wait after wrong passwords from its address; until then none is looked at, and that is not logged again for a while",
				"device", deviceID, "remote", y.address, "wait", wait.Round(time.Millisecond))
		}
		return false, fmt.Errorf("%w: too many failed logins: the next password of device %s from this address is looked at in %s", ErrDenied, deviceID, wait.Round(time.Millisecond))
	}
	right, err = s.passwords.check(ctx, deviceID, stored, l.Password)
	switch {
	case err != nil:
		s.tries.unjudged(y)
	case right:
		s.tries.right(y)
	}
	return right, err
}

// nobodysPassword is a hash at costGenerated that no password is known for.
const nobodysPassword = "$argon2id$v=19$m=64,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func (s *Service) loginJWT(ctx context.Context, l Login) (Admission, error) {
	b, err := s.verifyJWT(ctx, l.Password)
	if err != nil {
		return Admission{}, err
	}
	if b.voucher != "" {
		s.vouchers.note(b.voucher, s.Now())
	}
	a, err := admitted(b.device, s.Known(ctx, b.device))
	if err == nil {
		a.Until, a.Voucher = b.until.Add(JWTLeeway), b.voucher
	}
	return a, err
}

func looksLikeClaim(password []byte) bool { return bytes.HasPrefix(password, []byte(enroll.Prefix)) }

// loginClaim lets the holder of an enrollment token ask for a certificate. What
// the token lets in is looked at again when it is used.
func (s *Service) loginClaim(ctx context.Context, l Login) (Admission, error) {
	token, err := enroll.Parse(string(l.Password))
	if err != nil {
		return Admission{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	all, err := s.Store.EnrollmentTokens(ctx)
	if err != nil {
		return Admission{}, err
	}
	hash := sha256.Sum256(token.Secret[:])
	for _, t := range all {
		if t.ID == token.IDHex() && subtle.ConstantTimeCompare(t.SecretHash[:], hash[:]) == 1 {
			if err := t.usable(s.Now()); err != nil {
				return Admission{}, err
			}
			return Admission{Name: t.ID, Claim: true}, nil
		}
	}
	return Admission{}, fmt.Errorf("%w: unknown enrollment token", ErrDenied)
}
