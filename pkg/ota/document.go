package ota

// OpenDocument is a JobDocument for clients of other houses too: with the
// members that the install agent of the AWS IoT device SDK reads. They are
// signed by nobody. Who acts on them believes the server; our agent never looks.
type OpenDocument struct {
	JobDocument
	PackageName string    `json:"packageName,omitempty"`
	Files       []JobFile `json:"files,omitempty"` // empty: the server gives no links
}

// JobFile is one file to download.
type JobFile struct {
	FileName   string     `json:"fileName"` // the release's name
	FileSize   int64      `json:"fileSize"` // bytes
	FileSource FileSource `json:"fileSource"`
	Checksum   Checksum   `json:"checksum"`
}

// FileSource says where a file is.
type FileSource struct {
	URL string `json:"url"` // https, good for a while and for whoever holds it
}

// Checksum says what a file's bytes must be.
type Checksum struct {
	HashAlgorithm string       `json:"hashAlgorithm"` // "sha256"
	Inline        InlineDigest `json:"inline"`
}

// InlineDigest is the digest itself.
type InlineDigest struct {
	Value string `json:"value"` // lower-case hex
}

// NewJobFile describes the raw image of a release at a URL.
func NewJobFile(r Release, url string) JobFile {
	return JobFile{
		FileName: r.Name, FileSize: r.ImageSize, FileSource: FileSource{URL: url},
		Checksum: Checksum{HashAlgorithm: "sha256", Inline: InlineDigest{Value: r.ImageDigest}},
	}
}
