package storetest

import (
	"context"
	"math/big"
	"time"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/fleet"
)

func certificate(device string, serial int64, ends time.Time) fleet.Certificate {
	return fleet.Certificate{DeviceID: device, Serial: big.NewInt(serial), Ends: ends}
}

// bound is a certificate of fleet provisioning, with a serial number made of its id.
func bound(id string) fleet.BoundCertificate {
	return fleet.BoundCertificate{ID: id, Serial: new(big.Int).SetBytes([]byte(id)), Ends: epoch.Add(24 * time.Hour)}
}

// revoked are the serial numbers of the revoked certificates at a time.
func (s *suite) revoked(now time.Time) (serials []string) {
	s.Helper()
	list, err := s.RevokedCertificates(ctx, now)
	s.must(err)
	for _, c := range list {
		serials = append(serials, c.DeviceID+" "+c.Serial.Text(16))
	}
	return serials
}

var certificateTests = []test{
	{"a revoked device's certificates are revoked, all of them", func(s *suite) {
		s.enrolled("d", "e")
		huge, _ := new(big.Int).SetString("7fffffffffffffffffffffffffffffff", 16)
		ends := epoch.Add(time.Hour)
		for _, c := range []fleet.Certificate{certificate("d", 10, ends), certificate("d", 11, ends), {DeviceID: "d", Serial: huge, Ends: ends}, certificate("e", 12, ends)} {
			s.must(s.PutCertificate(ctx, c, epoch))
			s.must(s.PutCertificate(ctx, c, epoch)) // again
		}
		s.equal("before", s.revoked(epoch), []string{})
		s.must(s.RevokeDevice(ctx, "d", epoch.Add(time.Second)))
		s.equal("after", s.revoked(epoch), []string{"d 7fffffffffffffffffffffffffffffff", "d a", "d b"})
		list, err := s.RevokedCertificates(ctx, epoch)
		s.must(err)
		s.equal("whole", list[1].RevokedAt, kept.Add(time.Second))
		s.equal("end", list[1].Ends, kept.Add(time.Hour))
		s.must(s.PutCertificate(ctx, certificate("d", 13, ends), epoch)) // issued while it was being revoked
		s.equal("late", len(s.revoked(epoch)), 4)
	}},
	{"what has ended is not listed, and is forgotten at the next one", func(s *suite) {
		s.enrolled("d")
		s.must(s.PutCertificate(ctx, certificate("d", 10, epoch.Add(time.Minute)), epoch))
		s.must(s.PutCertificate(ctx, certificate("d", 11, epoch.Add(time.Hour)), epoch))
		s.must(s.RevokeDevice(ctx, "d", epoch))
		s.equal("a moment before the end", s.revoked(epoch.Add(time.Minute-time.Microsecond)), []string{"d a", "d b"})
		s.equal("at the end", s.revoked(epoch.Add(time.Minute)), []string{"d b"})
		s.must(s.PutCertificate(ctx, certificate("d", 12, epoch.Add(time.Hour)), epoch.Add(time.Minute)))
		s.equal("forgotten", s.revoked(epoch), []string{"d b", "d c"})
	}},
	{"a certificate is of a device", func(s *suite) {
		s.wantErr(s.PutCertificate(ctx, certificate("nobody", 10, epoch), epoch), fleet.ErrNotFound)
	}},
	{"a certificate that stands for a device is revoked with it", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 1})
		_, err := s.Provision(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, bound("J"), "t", epoch)
		s.must(err)
		_, err = s.Provision(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, bound("K"), "t", epoch.Add(time.Minute))
		s.must(err)
		s.equal("before", s.revoked(epoch), []string{})
		s.must(s.RevokeDevice(ctx, "d", at(2)))
		s.equal("after", s.revoked(epoch), []string{"d 4a", "d 4b"})
	}},
	{"the certificate of a claim is revoked with its token", func(s *suite) {
		s.wantErr(s.PutClaimCertificate(ctx, "t", certificate("", 10, at(60)), epoch), fleet.ErrNotFound)
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 1})
		s.token(fleet.EnrollmentToken{ID: "u", SecretHash: secret(2), Uses: 1})
		s.must(s.PutClaimCertificate(ctx, "t", certificate("", 10, at(60)), epoch))
		s.must(s.PutClaimCertificate(ctx, "t", certificate("", 10, at(60)), epoch)) // again
		s.must(s.PutClaimCertificate(ctx, "u", certificate("", 11, at(60)), epoch))
		s.equal("before", s.revoked(epoch), []string{})
		s.must(s.RevokeEnrollmentToken(ctx, "t", at(1)))
		list, err := s.RevokedCertificates(ctx, at(2))
		s.must(err)
		s.equal("after", s.revoked(at(2)), []string{fleet.ClaimName + "t a"})
		s.equal("times", []time.Time{list[0].Ends, list[0].RevokedAt}, []time.Time{keptAt(60), keptAt(1)})
		s.equal("when it has ended", s.revoked(at(60)), []string{})
		s.must(s.PutClaimCertificate(ctx, "u", certificate("", 12, at(120)), at(60)))
		s.equal("forgotten", s.revoked(epoch), []string{})
	}},
	{"cancelled", func(s *suite) {
		s.enrolled("d")
		s.must(s.RevokeDevice(ctx, "d", epoch))
		gone, cancel := context.WithCancel(ctx)
		cancel()
		s.wantErr(s.PutCertificate(gone, certificate("d", 10, epoch.Add(time.Hour)), epoch), context.Canceled)
		s.equal("stored", s.revoked(epoch), []string{})
		_, err := s.RevokedCertificates(gone, epoch)
		s.wantErr(err, context.Canceled)
	}},
}

func (w *walk) certificate(t *rapid.T) {
	now := w.time(t)
	c := certificate(devices.Draw(t, "device"), rapid.Int64Range(9, 20).Draw(t, "serial"), now.Add(time.Duration(rapid.IntRange(-1, 5).Draw(t, "life"))*time.Second))
	w.same("certificate", func(s fleet.Store) (any, error) { return nil, s.PutCertificate(ctx, c, now) })
}
