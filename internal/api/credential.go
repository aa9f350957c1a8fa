package api

import (
	"context"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/fleet"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func (h deviceHandler) CreateDevice(ctx context.Context, r *connect.Request[otadv1.CreateDeviceRequest]) (*connect.Response[otadv1.CreateDeviceResponse], error) {
	d, err := h.fleet.CreateDevice(ctx, fleet.Device{ID: r.Msg.GetId(), Hardware: r.Msg.GetHardware(), Tags: r.Msg.GetTags()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.CreateDeviceResponse{Device: encodeDevice(d)}), nil
}

func (h deviceHandler) SetDevicePassword(ctx context.Context, r *connect.Request[otadv1.SetDevicePasswordRequest]) (*connect.Response[otadv1.SetDevicePasswordResponse], error) {
	c, generated, err := h.fleet.SetPassword(ctx, r.Msg.GetDeviceId(), r.Msg.GetPassword())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.SetDevicePasswordResponse{Credential: encodeCredential(c), Password: generated}), nil
}

func (h deviceHandler) AddDeviceKey(ctx context.Context, r *connect.Request[otadv1.AddDeviceKeyRequest]) (*connect.Response[otadv1.AddDeviceKeyResponse], error) {
	c, err := h.fleet.AddKey(ctx, r.Msg.GetDeviceId(), r.Msg.GetKey())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.AddDeviceKeyResponse{Credential: encodeCredential(c)}), nil
}

func (h deviceHandler) ListDeviceCredentials(ctx context.Context, r *connect.Request[otadv1.ListDeviceCredentialsRequest]) (*connect.Response[otadv1.ListDeviceCredentialsResponse], error) {
	if _, err := h.fleet.Store.Device(ctx, r.Msg.GetDeviceId()); err != nil {
		return nil, err
	}
	all, err := h.fleet.Store.Credentials(ctx, r.Msg.GetDeviceId())
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListDeviceCredentialsResponse{}
	for _, c := range all {
		out.Credentials = append(out.Credentials, encodeCredential(c))
	}
	return connect.NewResponse(out), nil
}

func (h deviceHandler) DeleteDeviceCredential(ctx context.Context, r *connect.Request[otadv1.DeleteDeviceCredentialRequest]) (*connect.Response[otadv1.DeleteDeviceCredentialResponse], error) {
	if err := h.fleet.DeleteCredential(ctx, r.Msg.GetDeviceId(), r.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.DeleteDeviceCredentialResponse{}), nil
}

func (h deviceHandler) CreateJwtIssuer(ctx context.Context, r *connect.Request[otadv1.CreateJwtIssuerRequest]) (*connect.Response[otadv1.CreateJwtIssuerResponse], error) {
	i, err := h.fleet.AddIssuer(ctx, r.Msg.GetName(), r.Msg.GetDeviceGlob(), r.Msg.GetKeys())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.CreateJwtIssuerResponse{Issuer: encodeIssuer(i)}), nil
}

func (h deviceHandler) ListJwtIssuers(ctx context.Context, _ *connect.Request[otadv1.ListJwtIssuersRequest]) (*connect.Response[otadv1.ListJwtIssuersResponse], error) {
	all, err := h.fleet.Store.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListJwtIssuersResponse{}
	for _, i := range all {
		out.Issuers = append(out.Issuers, encodeIssuer(i))
	}
	return connect.NewResponse(out), nil
}

func (h deviceHandler) DeleteJwtIssuer(ctx context.Context, r *connect.Request[otadv1.DeleteJwtIssuerRequest]) (*connect.Response[otadv1.DeleteJwtIssuerResponse], error) {
	if err := h.fleet.DeleteIssuer(ctx, r.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.DeleteJwtIssuerResponse{}), nil
}

// encodeCredential leaves the hash of a password where it is.
func encodeCredential(c fleet.Credential) *otadv1.DeviceCredential {
	out := &otadv1.DeviceCredential{Id: c.ID, Kind: string(c.Kind), KeyId: c.KeyID, CreatedAt: timestamp(c.CreatedAt)}
	if c.Kind == fleet.CredentialKey {
		out.PublicKey = c.Secret
	}
	return out
}

func encodeIssuer(i fleet.Issuer) *otadv1.JwtIssuer {
	out := &otadv1.JwtIssuer{Name: i.Name, DeviceGlob: i.DeviceGlob, CreatedAt: timestamp(i.CreatedAt)}
	for _, k := range i.Keys {
		out.KeyIds = append(out.KeyIds, k.KeyID)
	}
	return out
}
