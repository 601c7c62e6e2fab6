# A template: the release workflow fills in every @NAME@ and puts the result beside the release's files.
class Lmpatch < Formula
  desc "Sets the prefill chunk size of LM Studio's MLX backends, exactly and reversibly"
  homepage "https://github.com/@REPOSITORY@"
  version "@VERSION@"
  license "MIT"

  depends_on macos: :sonoma

  on_arm do
    url "https://github.com/@REPOSITORY@/releases/download/v@VERSION@/lmpatch-aarch64-apple-darwin.tar.gz"
    sha256 "@SHA256_ARM64@"
  end

  on_intel do
    url "https://github.com/@REPOSITORY@/releases/download/v@VERSION@/lmpatch-x86_64-apple-darwin.tar.gz"
    sha256 "@SHA256_X86_64@"
  end

  def install
    bin.install "lmpatch"
    generate_completions_from_executable(bin/"lmpatch", "completions")
    (man1/"lmpatch.1").write Utils.safe_popen_read(bin/"lmpatch", "man")
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/lmpatch --version")
    assert_match "_lmpatch", shell_output("#{bin}/lmpatch completions zsh")
  end
end
