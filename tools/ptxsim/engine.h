// ptxsim engine: functional SIMT interpreter for PTX.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cfenv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef unsigned __int128 u128;
typedef __int128 s128;
using std::string;
using std::vector;
static const u32 FULL = 0xffffffffu;

enum Space : u8 { SP_GENERIC, SP_GLOBAL, SP_SHARED, SP_LOCAL, SP_PARAM, SP_CONST, SP_NONE };
static const u64 SHARED_BASE = 0x0300000000000000ull, LOCAL_BASE = 0x0200000000000000ull,
                 PARAM_BASE = 0x0100000000000000ull, WIN = 0x10000000000ull;
enum Kind : u8 { K_NORMAL, K_BRA, K_BRX, K_CALL, K_RET, K_EXIT, K_BAR, K_WSYNC, K_TRAP, K_YIELD, K_UNSUP, K_NOP };
enum Ty : u8 {
  T_NONE,
  T_U8,
  T_S8,
  T_U16,
  T_S16,
  T_U32,
  T_S32,
  T_U64,
  T_S64,
  T_F16,
  T_BF16,
  T_F32,
  T_F64,
  T_F16X2,
  T_BF16X2,
  T_PRED,
  T_B128,
  T_TF32,
  T_E4M3X2,
  T_E5M2X2
};
enum Cat : u8 { C_INT, C_FADD, C_FFMA, C_F64, C_HALF, C_SFU, C_CVT, C_MEM, C_CTRL, C_SETP, C_MOV, C_N };

struct Opnd {
  int off = 0;
  u8 w = 0;
  u8 kind = 0;
  u8 neg = 0;
  u8 pad = 0;
};
enum { OK_NONE, OK_REG, OK_PRED, OK_SINK, OK_CONST };
struct Warp;
struct Inst;
struct Launch;
struct Block;
typedef void (*ExecFn)(Warp&, const Inst&, u32);
struct Inst {
  ExecFn fn = nullptr, fn2 = nullptr;
  u8 kind = K_NORMAL, pneg = 0, nd = 0, ns = 0;
  u8 space = SP_NONE, ty = 0, ty2 = 0, cat = C_INT;
  u8 rm = 0, sat = 0, strong = 0, nc = 0, sub = 0, sub2 = 0, vec = 1, msize = 0;
  u8 fence_before = 0, fence_after = 0;
  u16 mix = 0;  // mix: index of membermask operand in s
  int pred = -1;
  u32 target = 0;
  s64 imm = 0;
  mutable int cache = -1;
  u32 idx = 0;
  Opnd d[8];
  Opnd s[10];
};
struct Cold {
  string text;
  int line = 0, file = 0, sline = 0;
  string why;
};
struct SimError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Range {
  u64 base = 0, size = 0;
  u8* host = nullptr;
  u8* shadow = nullptr;
  u32* gw = nullptr;
  bool own = false;
  bool ro = false;
  int id = 0;
  string name;
  u64 ld_bytes = 0, ld_sectors = 0, ld_req = 0, st_bytes = 0, st_sectors = 0, st_req = 0, atom_ops = 0, atom_req = 0;
};
struct Stats {  // keep in sync with __init__.py
  u64 warp_instr, thread_instr;
  u64 gld_req, gld_sectors, gld_bytes, gst_req, gst_sectors, gst_bytes, gatom_req, gatom_sectors, gatom_ops;
  u64 sld_req, sld_wavefronts, sld_ideal, sst_req, sst_wavefronts, sst_ideal, satom_req, satom_ops, sld_bytes,
      sst_bytes;
  u64 local_ld_bytes, local_st_bytes, const_ld_bytes;
  u64 block_barriers, warp_syncs, fences, branches, divergent_branches, calls;
  u64 blocks, threads, benign_races, shfl_inactive_reads, max_resident;
  u64 cat[16];
  u64 shared_static, shared_total, local_size, reg_bytes;
};
struct Opts {  // keep in sync with __init__.py
  u64 seed;
  u64 max_instr;
  double timeout_s;
  int check_uninit, check_races, weak_memory, resident, cooperative, early_exit, shfl_inactive, max_reports,
      approx_noise, track, block_order, split_warps;
};
struct Var {
  string name;
  int space = 0;
  u64 size = 0;
  u32 align = 1;
  vector<u8> init;
  bool ext = false;
  bool unsized = false;
  vector<std::pair<u64, string>> relocs;
  u64 addr = 0;
  int esize = 1;
};
struct Param {
  string name;
  u32 off, size, align;
  u8 ty;
};
struct Stmt {
  string text;
  int line, file, sline, scope;
};
struct RegDecl {
  u8 w;
  int count;
};  // count>=0: ranged
struct Scope {
  int parent;
  std::map<string, RegDecl> ranged;
  std::map<string, u8> regs;
  std::map<string, Var> vars;
  std::map<string, u32> labels;
  std::map<string, vector<string>> btargets;
};
struct Function {
  string name;
  bool entry = false, hasbody = false;
  vector<Param> params, rets;
  u32 psize = 0;
  vector<Stmt> code;
  vector<Scope> scopes;
  int maxntid[3] = {0, 0, 0};
  int reqntid[3] = {0, 0, 0};
  int cluster = 0;
};
struct CallInfo {
  vector<std::array<int, 3>> in, out;
  string builtin;
};
struct Program {
  string name;
  vector<Inst> code;
  vector<Cold> cold;
  vector<u8> cpool;
  u32 regbytes = 0;
  u32 localsize = 64;
  u32 sstatic = 0;
  u32 sdyn_off = 0;
  vector<std::pair<u32, u32>> svars;  // offset,size of valid static shared ranges
  vector<std::pair<string, std::pair<u32, u32>>> svarnames;
  vector<CallInfo> calls;
  vector<vector<u32>> btabs;
  std::map<string, int> special;
  bool uses_dyn = false;
};
struct Module {
  string text;
  std::map<string, Function> funcs;
  vector<string> entries;
  std::map<string, Var> vars;
  std::map<int, string> files;
  std::map<string, std::unique_ptr<Program>> progs;
  vector<int> range_ids;
  int target = 80;
};

struct RAcc {
  u16 t = 0;
  u8 flags = 0;
  u32 wc = 0, lc = 0, pc = 0, seq = 0;
};  // t = tid+1
struct RaceRec {
  RAcc w, r0, r1, r2;
};
struct Barrier {
  u32 arrived = 0, expected = 0;
  vector<u32> J;
  s64 acc_pop = 0;
  bool acc_and = true, acc_or = false;
  u32 firstpc = 0;
  bool mixed = false;
};
struct SBEntry {
  u32 val;
  u8 mask;
  u16 tid;
  u32 wc, lc;
};
struct CpAsync {
  u64 sdst;
  u8 size;
  u8 data[16];
  u32 group;
};
struct Warp {
  u8* R = nullptr;
  const u8* cp = nullptr;
  Block* blk = nullptr;
  Launch* L = nullptr;
  u32 pc[32];
  u32 alive = 0, waitW = 0, waitB = 0, init = 0;
  u32 wmask[32];
  u8 barid[32];
  int wid = 0;
  u32 cc = 0;
  u8* local = nullptr;
  vector<u32> cstack[32];
  u32 *LVC = nullptr, *LVR = nullptr;
  u32 weakmask = 0;
  u8 tmp[32][32];
  vector<CpAsync> cpa[32];
  u32 cpgroup[32];
  template <class T>
  T* D(const Opnd& o) {
    return (T*)(R + o.off);
  }
  template <class T>
  const T* S(const Opnd& o) const {
    return (const T*)(o.off >= 0 ? R + o.off : cp + ~o.off);
  }
  u32 P(const Opnd& o) const {
    u32 v = *(const u32*)(o.off >= 0 ? R + o.off : cp + ~o.off);
    return o.neg ? ~v : v;
  }
};
struct Block {
  u32 x, y, z;
  u64 lin;
  Launch* L;
  vector<Warp> warps;
  vector<u8> regs, smem, sshadow, local, mixed;
  vector<RaceRec> race;
  vector<u32> WVC, LVCs;
  Barrier bar[17];
  int nthreads = 0, nalive = 0, nw = 0;
  std::unordered_map<u64, SBEntry> sb;
  std::map<u64, vector<u32>> mbJ;
  std::unordered_map<u64, std::array<RAcc, 4>> gwr;
  bool done = false;
};

struct Rng {
  u64 s;
  u32 next() {
    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (u32)(s >> 16);
  }
};
struct Launch {
  Module* mod = nullptr;
  Program* P = nullptr;
  Opts o;
  Stats* st = nullptr;
  u32 grid[3], block[3];
  u32 shtotal = 0, shdyn = 0;
  vector<u8> params;
  Rng rng{88172645463325252ull};
  bool random = false;
  u64 clock = 0;
  std::map<std::pair<int, u32>, std::pair<u64, string>> reports;
  u64 envreg = 0;
  string out;
  u64 next_yield = 0;
  bool yield_now = false;
  u64 fp_seed = 0;
  u32 seq = 0;
  std::deque<std::unordered_map<u64, SBEntry>> orphans;
  size_t norph = 0;
};
struct Mem {
  vector<Range*> rs;
  u64 next = 0x700000000ull;
  Range* find(u64 a);
  Range* add(void* host, u64 size, u64 mis, bool init, const char* name);
  void remove(int id);
  Range* byid(int id);
  int nextid = 1;
};
extern Mem g_mem;
[[noreturn]] void fail(Warp& w, const Inst& I, int lane, const string& msg);
void report(Warp& w, const Inst& I, int lane, const char* kind, const string& msg);
void access(Warp& w, const Inst& I, u32 m, const u64* A, u8** H, u32 size, int mode, const u8 (*stage)[32]);
void finish_store(Warp& w, const Inst& I, const u64* A, u32 size);
void do_fence(Warp& w, const Inst& I, u32 m);
void lane_join(Warp& w, u32 mask);
void lane_join_r(Warp& w, u32 mask);
void vc_release(Warp& w, u32 m, u64 key);
void vc_acquire(Warp& w, u32 m, u64 key);
Program* build(Module& M, const string& name);
void parse_module(Module& M, const string& text);
inline u64 maskw(int bytes) { return bytes >= 8 ? ~0ull : ((1ull << (8 * bytes)) - 1); }
string fmt(const char* f, ...) __attribute__((format(printf, 1, 2)));
