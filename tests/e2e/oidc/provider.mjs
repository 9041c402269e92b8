// A real OpenID Connect provider (oidc-provider, certified) for the end-to-end suite, on loopback.
//
//   node provider.mjs MODULES PORT KEYS
//
// MODULES: folder with node_modules. PORT: 0 takes a free one. KEYS: a name; each name has signing keys of its own.
// Prints one line of JSON when it listens. Any account name may sign in by the provider's own development pages.
import { createHash, generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [modules, port, keys] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${modules}/`));
const { Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

const key = () => {
  const pair = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...pair.privateKey.export({ format: 'jwk' }), use: 'sig', kid: `${keys}-${Date.now()}` };
};

// What the provider remembers lives in a file, so that a restart with other keys keeps its grants.
class Kept {
  static file = process.env.PROVIDER_STATE;
  static all = existsSync(Kept.file) ? JSON.parse(readFileSync(Kept.file)) : {};
  static save() { writeFileSync(Kept.file, JSON.stringify(Kept.all)); }
  constructor(model) { this.model = model; }
  id(id) { return `${this.model}:${id}`; }
  async upsert(id, payload) { Kept.all[this.id(id)] = payload; Kept.save(); }
  async find(id) { return Kept.all[this.id(id)]; }
  #where(name, value) {
    return Object.entries(Kept.all)
      .find(([key, it]) => key.startsWith(`${this.model}:`) && it[name] === value)?.[1];
  }
  async findByUserCode(code) { return this.#where('userCode', code); }
  async findByUid(uid) { return this.#where('uid', uid); }
  async consume(id) { Kept.all[this.id(id)].consumed = Math.floor(Date.now() / 1000); Kept.save(); }
  async destroy(id) { delete Kept.all[this.id(id)]; Kept.save(); }
  async revokeByGrantId(grantId) {
    for (const [key, it] of Object.entries(Kept.all)) if (it.grantId === grantId) delete Kept.all[key];
    Kept.save();
  }
}

const server = createServer();
server.listen(Number(port), '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    adapter: Kept,
    jwks: { keys: [key()] },
    cookies: { keys: [createHash('sha256').update('cookies').digest('hex')] },
    clients: [{
      client_id: 'switchback',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      redirect_uris: ['http://127.0.0.1/callback'],
      grant_types: [
        'authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code',
      ],
    }],
    claims: { email: ['email', 'email_verified'], profile: ['groups'] },
    conformIdTokenClaims: false,
    features: {
      devInteractions: { enabled: true },
      deviceFlow: { enabled: true },
      revocation: { enabled: true },
    },
    pkce: { required: () => true },
    rotateRefreshToken: true,
    findAccount: (_, id) => ({
      accountId: id,
      claims: () => ({
        sub: id, email: `${id}@example.com`, email_verified: true,
        groups: id === 'root' ? ['ops', 'dev'] : ['dev'],
      }),
    }),
  });
  server.on('request', provider.callback());
  console.log(JSON.stringify({ issuer }));
});
