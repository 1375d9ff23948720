// Drives ComfyUI's real front end in a headless Chromium. Takes one JSON argument, prints one JSON answer.
//   { base, chromium, look: {name: workflow file}, pictures: folder or null, run: {pack, name, folder} or null }
// The answer's version is the page's own, of comfyui-frontend-package.
// look: each workflow is loaded; the answer holds its missing node types, links lost, and the prompt made of it.
// run: the workflow is opened from the template dialog (or over the API where that shows nothing) and queued with
// the button; the answer holds what the history says, and the size and length of the film that the page shows.
const { readFileSync } = require('node:fs')
const { chromium } = require(process.env.PLAYWRIGHT_CORE)
const job = JSON.parse(process.argv[2])
const ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--autoplay-policy=no-user-gesture-required']
// A fresh profile misses these, and what the pack does not make is not its to answer for.
const EXPECTED = /user\.css|userdata|comfy\.templates|workflow_templates|graph accessed before|Content Security Policy|favicon|index\.json|404/

async function open() {
  const settings = { 'Comfy.TutorialCompleted': true, 'Comfy.Locale': 'en', 'Comfy.Minimap.Visible': false,
    'LiteGraph.Canvas.MinFontSizeForLOD': 0, 'Comfy.Workflow.ShowMissingModelsWarning': true }
  await fetch(job.base + '/api/settings', { method: 'POST', headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(settings) })
  const browser = await chromium.launch({ executablePath: job.chromium, headless: true, args: ARGS })
  const page = await browser.newPage({ viewport: { width: 2400, height: 1350 } })
  page.setDefaultTimeout(120000)
  const errors = []
  page.on('console', message => {
    const text = `${message.text()} ${message.location().url}`
    if (message.type() === 'error' && !EXPECTED.test(text)) errors.push(text.slice(0, 500))
  })
  page.on('pageerror', error => errors.push(String(error).slice(0, 500)))
  await page.goto(job.base, { waitUntil: 'domcontentloaded' })
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.MagiHumanSampler)
  await page.waitForTimeout(1000)
  return { browser, page, errors }
}

// Everything of the graph into view; returns the rectangle it covers on the page.
const fit = page => page.evaluate(async () => {
  const { graph, canvas } = window.app
  let [left, top, right, bottom] = [1e9, 1e9, -1e9, -1e9]
  for (const node of graph.nodes) {
    left = Math.min(left, node.pos[0]); right = Math.max(right, node.pos[0] + node.size[0])
    top = Math.min(top, node.pos[1] - 30); bottom = Math.max(bottom, node.pos[1] + node.size[1])
  }
  for (const group of graph.groups) {
    left = Math.min(left, group.pos[0]); right = Math.max(right, group.pos[0] + group.size[0])
    top = Math.min(top, group.pos[1]); bottom = Math.max(bottom, group.pos[1] + group.size[1])
  }
  const [x, y, room, tall] = [90, 110, window.innerWidth - 120, window.innerHeight - 190]
  const scale = Math.min(1, room / (right - left), tall / (bottom - top))
  canvas.ds.scale = scale
  canvas.ds.offset = [x / scale - left, y / scale - top]
  graph.setDirtyCanvas(true, true)
  await new Promise(done => setTimeout(done, 1200))
  return { x: x - 8, y: y - 8, width: (right - left) * scale + 16, height: (bottom - top) * scale + 16 }
})

const missing = page => page.evaluate(() => window.app.graph.nodes
  .filter(node => !window.LiteGraph.registered_node_types[node.type]).map(node => node.type))

// Rectangles of nodes that lie on one another, titles included.
const overlaps = page => page.evaluate(() => {
  const boxes = window.app.graph.nodes.map(n => [n.title, n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]])
  const found = []
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
    if (a[1] < b[3] && b[1] < a[3] && a[2] < b[4] && b[2] < a[4]) found.push([a[0], b[0]])
  }))
  return found
})

async function look(page, name, file) {
  const workflow = JSON.parse(readFileSync(file, 'utf8'))
  await page.evaluate(([workflow, name]) => window.app.loadGraphData(workflow, true, true, name), [workflow, name])
  await page.waitForTimeout(800)
  const answer = { missing: await missing(page), overlaps: await overlaps(page) }
  answer.links = await page.evaluate(() => window.app.graph.links.size ?? Object.keys(window.app.graph.links).length)
  answer.prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output)
  if (job.pictures) {
    const clip = await fit(page)
    await page.screenshot({ path: `${job.pictures}/${name}.png`, clip })
  }
  return answer
}

async function run(page, { pack, name, folder }) {
  const answer = { way: 'template dialog' }
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  await page.waitForTimeout(3000)
  await page.screenshot({ path: `${folder}/templates.png` })
  const entry = page.getByText(pack, { exact: true })
  if (await entry.count()) {
    await entry.first().click()
    await page.waitForTimeout(1500)
    await page.screenshot({ path: `${folder}/templates.png` })
    await page.getByText(name, { exact: true }).first().click()
  } else {
    answer.way = 'API, for the template dialog does not show this pack (comfyui-workflow-templates not installed?)'
    await page.keyboard.press('Escape')
    const workflow = await (await fetch(`${job.base}/api/workflow_templates/${pack}/${name}.json`)).json()
    await page.evaluate(([workflow, name]) => window.app.loadGraphData(workflow, true, true, name), [workflow, name])
  }
  await page.waitForFunction(() => window.app.graph.nodes.some(node => node.type === 'MagiHumanSampler'))
  await page.waitForTimeout(1000)
  answer.missing = await missing(page)
  const sent = page.waitForResponse(r => r.url().endsWith('/prompt') && r.request().method() === 'POST')
  await page.getByTestId('queue-button').first().click()
  const response = await sent
  answer.status = response.status()
  const id = (await response.json()).prompt_id
  let history
  for (let i = 0; i < 2000 && !history; i++) {  // a busy machine takes minutes
    history = (await (await fetch(`${job.base}/history/${id}`)).json())[id]
    if (!history) await page.waitForTimeout(250)
  }
  answer.end = history?.status?.status_str
  answer.outputs = history?.outputs
  await page.waitForFunction(() => [...document.querySelectorAll('video')].some(v => v.readyState >= 2))
  answer.films = await page.evaluate(() => [...document.querySelectorAll('video')]
    .map(v => ({ seconds: v.duration, width: v.videoWidth, height: v.videoHeight })))
  await fit(page)
  // Somewhere in the film, not at its first frame.
  await page.evaluate(() => document.querySelectorAll('video').forEach(v => { v.pause(); v.currentTime = v.duration / 2 }))
  await page.waitForTimeout(1500)
  await page.screenshot({ path: `${folder}/run.png` })
  return answer
}

async function main() {
  const { browser, page, errors } = await open()
  const version = await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__)
  const answer = { looked: {}, errors, version }
  try {
    for (const [name, file] of Object.entries(job.look ?? {})) answer.looked[name] = await look(page, name, file)
    if (job.run) answer.run = await run(page, job.run)
  } finally {
    await browser.close()
  }
  process.stdout.write(JSON.stringify(answer))
}

main().catch(error => { process.stderr.write(`${error.stack}\n`); process.exit(1) })
